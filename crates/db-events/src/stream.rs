//! Reading from a cursor, and following to the end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::Stream;

use crate::fanout::{Follower, Next};
use crate::page::{Continuity, Events, PAGE_BYTES, Wanted};
use crate::reader::{self, Reader};
use crate::seen::Seen;
use crate::{Error, Event, EventLogs, LogId, Mark};

/// The longest time between two looks at a log that is followed; a lost notification costs at most this delay.
pub const POLL_FLOOR: Duration = Duration::from_secs(5);

/// The events of a log after a cursor, live, until the log is finished.
///
/// What is there already comes by pages, a query each. At the end of a log that is not finished, the stream joins the log's one
/// reader in this process: however many follow a log, one query reads what is new. A stream that is too slow for that goes back to
/// pages, and joins again; nobody waits for it.
///
/// A database that is away is waited for: only what waiting cannot mend is an error.
///
/// **Nothing is skipped without a word.** Each page continues what was returned before, or the stream ends with an error: events
/// after the cursor were removed ([`Error::Removed`]), or those that were returned are not there any more, or others are in their
/// place ([`Error::Rewound`]). It remembers the marks of some of the batches that it has returned, and so can say up to
/// where they are the same.
pub struct EventStream {
    events: EventLogs,
    log: LogId,
    cursor: i64,
    /// The cursor's batch, once it is known, and some before it.
    seen: Seen,
    /// At which size a page that it reads is full.
    page_bytes: i64,
    joined: Option<Joined>,
    is_finished: bool,
}

/// A place among those who follow a log.
struct Joined {
    reader: Arc<Reader>,
    /// Everything that is passed on after this place was taken, before the first look.
    follower: Follower,
    /// All that was there has been seen: what is passed on is what comes next.
    is_live: bool,
}

impl EventStream {
    pub(crate) fn new(events: EventLogs, log: LogId, after: i64, mark: Option<Mark>) -> Self {
        let cursor = after.clamp(0, i64::MAX - 1);
        // Before the first event there is nothing to be lost.
        let seen = mark.filter(|_| cursor > 0).map(|mark| Seen::at(cursor, mark)).unwrap_or_default();
        Self { events, log, cursor, seen, page_bytes: PAGE_BYTES, joined: None, is_finished: false }
    }

    /// The last event that was returned: the cursor to resume with.
    #[must_use]
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// The same stream with pages of another size than 1 MiB, for one who is to hold little at once: a page that this stream reads by
    /// itself has less than three times that many bytes of text, or one event. What it is passed on while it follows live may be more.
    #[must_use]
    pub fn page_bytes(self, bytes: u32) -> Self {
        Self { page_bytes: i64::from(bytes).clamp(1, PAGE_BYTES), ..self }
    }

    /// The mark of the last event that was returned, to [resume](EventLogs::resume) with; none if nothing is known of it yet.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.seen.mark(self.cursor)
    }

    /// The next events, at least one, in order; `None` once the log is finished and all was returned.
    ///
    /// Cancel safe: the cursor moves only when events are returned.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Removed`], [`Error::Rewound`], or what waiting cannot mend.
    pub async fn next_batch(&mut self) -> Result<Option<Events>, Error> {
        let mut pauses = backoff();
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
                Ok(None) => pauses = backoff(),
                Err(error) if error.may_pass() => {
                    tracing::warn!(log = %self.log, %error, "cannot read events yet");
                    tokio::time::sleep(pauses.next().unwrap_or(POLL_FLOOR)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The same, one event at a time, as a [`Stream`].
    pub fn events(mut self) -> impl Stream<Item = Result<Event, Error>> + Send {
        try_stream! {
            while let Some(batch) = self.next_batch().await? {
                for event in batch {
                    yield event;
                }
            }
        }
    }

    /// What the log's reader has read; none if the stream has to look by itself.
    async fn published(&mut self) -> Option<Events> {
        let mark = self.mark();
        loop {
            let joined = self.joined.as_mut().filter(|joined| joined.is_live)?;
            match joined.follower.next().await {
                // The look tells whether that is because of this stream or because of the log.
                Next::Page { events, .. } if !events.continue_after(self.cursor, mark) => {
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
                // The log is finished, gone, or cannot be read: a look tells.
                Next::Ended => {
                    self.joined = None;
                    return None;
                }
            }
        }
    }

    /// One page after the cursor; none at the end, which may be the log's, or where it joins those who follow.
    async fn read_page(&mut self) -> Result<Option<Events>, Error> {
        let shared = self.events.shared();
        let wanted = Wanted { bytes: self.page_bytes, ..Wanted::after(self.cursor) };
        let read = || reader::page(shared, self.log, wanted);
        let page = shared.catching_up().page(self.log, wanted, read).await?;
        let continuity = page.continuity(self.cursor, self.mark());
        match continuity {
            Continuity::Removed => return Err(Error::Removed(self.log)),
            Continuity::Rewound => return Err(self.events.rewound(self.log, &self.seen).await?),
            Continuity::Continues | Continuity::AtEnd => {}
            Continuity::NoTrace => {
                let head = self.events.head(self.log).await?;
                if head.last < self.cursor {
                    return Err(self.events.rewound(self.log, &self.seen).await?);
                }
                // Otherwise something came between the two queries.
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

    /// The log was seen to end with event `end`. A stream that had joined before that look follows from here on. One
    /// that had not joins now, and looks once more, since there may be something that was passed on in between; whoever only reads
    /// a log that is finished needs no place, and nobody is told of one.
    fn follow_from(&mut self, end: i64, mark: Option<Mark>) {
        if self.is_finished {
            self.joined = None;
        } else if let Some(joined) = &mut self.joined {
            // A reader that has begun further on did so after that look, with what another stream has seen.
            joined.is_live = joined.reader.start_at(end, mark, self.events.shared()) <= end;
            if !joined.is_live && end == self.cursor {
                // And yet there is nothing: the log was rewound, or removed. The reader finds out, and ends.
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

/// Where it is, and not what it has read.
impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("log", &self.log)
            .field("cursor", &self.cursor)
            .field("is_live", &self.joined.as_ref().is_some_and(|joined| joined.is_live))
            .finish_non_exhaustive()
    }
}

pub(crate) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(POLL_FLOOR)
        .with_jitter()
        .without_max_times()
        .build()
}
