//! A stream: the events after a cursor, followed to the end of the log.

use std::fmt;
use std::sync::Arc;

use async_stream::try_stream;
use futures_util::Stream;
use tokio::time::sleep;

use crate::follow::{self, Follower, Next, Reader};
use crate::limits::{POLL_FLOOR, pauses};
use crate::read::{Continuity, Events, PAGE_BYTES, Seen, Wanted};
use crate::{Error, Event, EventLogs, LogId, Mark};

/// The events of a log after a cursor, live, until the log is finished.
///
/// Events that are stored already are read by pages, with one query each. At the end of a log that is not finished, the stream
/// joins the log's reader in this process: one query reads new events for all streams of the log. A stream that is too slow for
/// the reader goes back to pages, and joins again later; it delays no other stream.
///
/// While the database is away, the stream waits. It returns only errors that waiting cannot repair.
///
/// **No event is skipped silently.** Each page continues the events that were returned before, or the stream ends with an error:
/// [`Error::Removed`] if events after the cursor were removed, [`Error::Rewound`] if events that were returned are not there any
/// more, or other events have their ids. The stream remembers the marks of some of the batches that it has returned, and from them
/// derives the last event that is unchanged.
pub struct EventStream {
    events: EventLogs,
    log: LogId,
    cursor: i64,
    /// The batch of the cursor, once it is known, and some batches before it.
    seen: Seen,
    /// The size at which a page that the stream reads is full.
    page_bytes: i64,
    /// The batches that the next page should look at, once a page was read.
    page_batches: Option<i32>,
    joined: Option<Joined>,
    is_finished: bool,
}

/// A subscription to the log's reader.
struct Joined {
    reader: Arc<Reader>,
    /// Receives all pages that the reader has published since the stream subscribed, which was before the stream's last page.
    follower: Follower,
    /// Whether the stream has read all events up to those that the follower receives.
    is_live: bool,
}

impl EventLogs {
    /// The events after event `after` (0 for all), and all later ones, until the log is finished. The stream ends with
    /// [`Error::Rewound`] if `after` is beyond the end of the log, and with [`Error::Removed`] if events after `after` were removed.
    ///
    /// An id alone is taken to stand for the event that has it now; with its mark, [`resume`](Self::resume) makes sure.
    #[must_use]
    pub fn stream(&self, log: LogId, after: i64) -> EventStream {
        EventStream::new(self.clone(), log, after, None)
    }

    /// As [`stream`](Self::stream), for a reader that has the mark of event `after` ([`Event::mark`], [`EventStream::mark`]): the
    /// stream also ends with [`Error::Rewound`] if that event is not the one that was seen.
    #[must_use]
    pub fn resume(&self, log: LogId, after: i64, mark: Mark) -> EventStream {
        EventStream::new(self.clone(), log, after, Some(mark))
    }

    /// The last `count` events of a log, and all later ones. Events that were [trimmed](Self::trim) are not missed.
    ///
    /// # Errors
    ///
    /// As [`head`](Self::head).
    pub async fn stream_last(&self, log: LogId, count: u32) -> Result<EventStream, Error> {
        let last = self.head(log).await?.last;
        let first = self.first_after(log, 0).await?.unwrap_or(1);
        Ok(self.stream(log, last.saturating_sub(count.into()).max(first - 1)))
    }
}

impl EventStream {
    fn new(events: EventLogs, log: LogId, after: i64, mark: Option<Mark>) -> Self {
        let cursor = after.clamp(0, i64::MAX - 1);
        // Before the first event, no event can be lost.
        let seen = mark.filter(|_| cursor > 0).map(|mark| Seen::at(cursor, mark)).unwrap_or_default();
        Self {
            events,
            log,
            cursor,
            seen,
            page_bytes: PAGE_BYTES,
            page_batches: None,
            joined: None,
            is_finished: false,
        }
    }

    /// The last event that was returned: the cursor to resume with.
    #[must_use]
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Sets the size of pages (default and maximum 1 MiB), for callers with little memory. A page that the stream reads has
    /// less than three times that many bytes of text, or one event. Pages that it receives from the log's reader may be larger.
    #[must_use]
    pub fn page_bytes(self, bytes: u32) -> Self {
        Self { page_bytes: i64::from(bytes).clamp(1, PAGE_BYTES), ..self }
    }

    /// The mark of the last event that was returned, to [resume](EventLogs::resume) with; none if the stream does not know it yet.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.seen.mark(self.cursor)
    }

    /// The next events, at least one, in order; `None` once the log is finished and all events were returned.
    ///
    /// Cancel safe: the cursor moves only when events are returned.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Removed`], [`Error::Rewound`], and errors that waiting cannot repair.
    pub async fn next_batch(&mut self) -> Result<Option<Events>, Error> {
        let mut backoff = pauses(POLL_FLOOR);
        while !self.is_finished {
            let found = match self.published().await {
                Some(events) => Ok(Some(events)),
                None if self.is_finished => break,
                None => self.read_page().await,
            };
            match found {
                Ok(Some(events)) => {
                    self.seen.take(&events);
                    self.cursor = events.last_id();
                    return Ok(Some(events));
                }
                Ok(None) => backoff = pauses(POLL_FLOOR),
                Err(error) if error.may_be_repeated() => {
                    tracing::warn!(log = %self.log, %error, "cannot read an event log, will be repeated");
                    sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The stream, one event at a time, as a [`Stream`].
    pub fn events(mut self) -> impl Stream<Item = Result<Event, Error>> + Send {
        try_stream! {
            while let Some(batch) = self.next_batch().await? {
                for event in batch {
                    yield event;
                }
            }
        }
    }

    /// The next events that the log's reader publishes; none if the stream must read a page by itself.
    async fn published(&mut self) -> Option<Events> {
        let mark = self.mark();
        loop {
            let joined = self.joined.as_mut().filter(|joined| joined.is_live)?;
            match joined.follower.next().await {
                // A page shows whether the stream or the log is the cause.
                Next::Page { events, is_finished }
                    if !events.continue_after(self.cursor, mark, is_finished) =>
                {
                    joined.is_live = false;
                    return None;
                }
                Next::Page { events, is_finished } => {
                    self.is_finished = is_finished;
                    let events = events.after(self.cursor);
                    if events.is_some() || self.is_finished {
                        return events;
                    }
                }
                Next::TooSlow => {
                    joined.is_live = false;
                    return None;
                }
                // The log is finished, gone, or cannot be read: a page shows which.
                Next::Ended => {
                    self.joined = None;
                    return None;
                }
            }
        }
    }

    /// Reads one page after the cursor. None at the end of the log, where the stream subscribes to the reader, or follows it.
    async fn read_page(&mut self) -> Result<Option<Events>, Error> {
        let registry = self.events.registry();
        let all = Wanted::after(self.cursor);
        let batches = self.page_batches.unwrap_or(all.batches);
        let wanted = Wanted { bytes: self.page_bytes, batches, ..all };
        let read = || follow::page(registry, self.log, wanted);
        let page = registry.page_reads().page(self.log, wanted, read).await?;
        self.page_batches = Some(page.next_batches);
        let continuity = page.continuity(self.cursor, self.mark());
        match continuity {
            Continuity::Removed => return Err(self.events.removed(self.log, self.cursor).await?),
            Continuity::Rewound => return Err(self.events.rewound(self.log, &self.seen).await?),
            Continuity::Continues | Continuity::AtEnd => {}
            Continuity::NoTrace => {
                let head = self.events.head(self.log).await?;
                if head.last < self.cursor {
                    return Err(self.events.rewound(self.log, &self.seen).await?);
                }
                // Otherwise events came between the two queries.
                if head.last == 0 {
                    self.follow_from(0, None);
                }
                return Ok(None);
            }
        }
        // No await from here on: the caller moves the cursor.
        if let Some(anchor) = page.anchor.filter(|_| self.mark().is_none()) {
            self.seen.push(self.cursor, anchor.mark);
        }
        self.is_finished = page.is_finished;
        let last = page.events.as_ref().map_or(self.cursor, Events::last_id);
        if continuity == Continuity::AtEnd || self.is_finished || !page.is_full {
            let mark = page.events.as_ref().and_then(|events| events.last()).map(|event| event.mark);
            self.follow_from(last, mark.or(self.mark()));
        }
        Ok(page.events)
    }

    /// Follows the log's reader, after a page that has shown that the log ends with event `end`.
    ///
    /// If the stream has not subscribed yet, it subscribes, and must then read one more page: an append may have been published
    /// between the last page and the subscription. A finished log needs no subscription.
    fn follow_from(&mut self, end: i64, mark: Option<Mark>) {
        if self.is_finished {
            self.joined = None;
        } else if let Some(joined) = &mut self.joined {
            // A reader with a later start was started after that page, by another stream that had read further.
            joined.is_live = joined.reader.start_at(end, mark, self.events.registry()) <= end;
            if !joined.is_live && end == self.cursor {
                // The other stream had read events that do not exist now: the log was rewound or removed. The reader detects
                // that, and ends.
                joined.reader.live().wake();
                self.joined = None;
            }
        } else {
            self.joined = self.join();
        }
    }

    fn join(&self) -> Option<Joined> {
        let reader = self.events.reader(self.log);
        let follower = reader.live().follow()?;
        Some(Joined { reader, follower, is_live: false })
    }
}

/// Shows the position, and no event.
impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("log", &self.log)
            .field("cursor", &self.cursor)
            .field("is_live", &self.joined.as_ref().is_some_and(|joined| joined.is_live))
            .finish_non_exhaustive()
    }
}
