//! The events that are stored, without waiting for more.

use crate::read::{Continuity, Page, Seen, Wanted};
use crate::{Error, Event, EventLogs, LogId};

/// Which events of a log to read; all of them by default.
///
/// ```
/// use db_events::Selection;
///
/// let ten_lines_at_most = Selection::default().after(100).until(200).kinds(["line"]).last(10);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    pub(crate) after: i64,
    pub(crate) until: Option<i64>,
    pub(crate) last: Option<u32>,
    pub(crate) kinds: Option<Vec<String>>,
}

impl Selection {
    /// Only the events after an event.
    #[must_use]
    pub fn after(self, id: i64) -> Self {
        Self { after: id.max(0), ..self }
    }

    /// Only the events up to an event, inclusive.
    #[must_use]
    pub fn until(self, id: i64) -> Self {
        Self { until: Some(id), ..self }
    }

    /// Only the last `count` of them, counted before kinds are selected. Events that were [trimmed](EventLogs::trim) are not missed.
    #[must_use]
    pub fn last(self, count: u32) -> Self {
        Self { last: Some(count), ..self }
    }

    /// Only events of these kinds. Batches without any of them are not read.
    #[must_use]
    pub fn kinds(self, kinds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { kinds: Some(kinds.into_iter().map(Into::into).collect()), ..self }
    }

    fn wants(&self, event: &Event) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|kind| **kind == *event.kind))
    }
}

/// The events that a log has at the first call, by pages.
#[derive(Debug)]
pub struct History {
    events: EventLogs,
    log: LogId,
    selection: Selection,
    /// None before the first page.
    range: Option<Range>,
    /// The batches that were read, to check that the rest continues them.
    seen: Seen,
}

/// The events that are still to be read.
#[derive(Debug, Clone, Copy)]
struct Range {
    after: i64,
    until: i64,
}

impl EventLogs {
    /// Some or all of the events that a log has now.
    #[must_use]
    pub fn history(&self, log: LogId, selection: Selection) -> History {
        History { events: self.clone(), log, selection, range: None, seen: Seen::default() }
    }
}

impl History {
    /// The next selected events, at least one, in order; `None` when there are no more. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`]. [`Error::Removed`] if events that are still to be read were removed, and [`Error::Rewound`] if
    /// events that were read, or expected, do not exist any more. After [`Error::Database`] and [`Error::TimedOut`], call again
    /// to go on.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let mut range = match self.range {
            Some(range) => range,
            None => self.begin().await?,
        };
        self.range = Some(range);
        while range.after < range.until {
            let kinds = self.selection.kinds.as_deref();
            let wanted = Wanted { until: range.until, kinds, ..Wanted::after(range.after) };
            let registry = self.events.registry();
            let permit = registry.page_reads().permit().await?;
            let page = Page::read(registry.pool(), self.log, wanted).await?;
            drop(permit);
            self.check(&page, range).await?;
            // No await from here to the return: a future that is dropped has not moved the range.
            if let Some(events) = &page.events {
                self.seen.take(events);
            }
            range.after = if page.is_full { page.seen } else { range.until };
            self.range = Some(range);
            let wanted: Vec<Event> =
                page.events.into_iter().flatten().filter(|event| self.selection.wants(event)).collect();
            if !wanted.is_empty() {
                return Ok(Some(wanted));
            }
        }
        Ok(None)
    }

    /// Whether a page continues the events that were read, and has all events up to the end of the range.
    async fn check(&self, page: &Page, range: Range) -> Result<(), Error> {
        let is_whole = page.is_full || page.seen >= range.until;
        match page.continuity(range.after, self.seen.mark(range.after)) {
            Continuity::Removed => return Err(self.events.removed(self.log, range.after).await?),
            Continuity::Rewound => return Err(self.events.rewound(self.log, &self.seen).await?),
            Continuity::Continues | Continuity::AtEnd | Continuity::NoTrace
                if is_whole && self.selection.kinds.is_none() =>
            {
                return Ok(());
            }
            Continuity::Continues | Continuity::AtEnd | Continuity::NoTrace => {}
        }
        // A page of some kinds has holes for batches without them, so the log's ends are compared instead. When a log is
        // removed, its row goes before its batches.
        let head = self.events.head(self.log).await?;
        if self.selection.kinds.is_none() || head.last < range.until {
            return Err(self.events.rewound(self.log, &self.seen).await?);
        }
        match self.events.first_after(self.log, 0).await? {
            Some(first) if first <= range.after + 1 => Ok(()),
            first => Err(Error::Removed { log: self.log, first }),
        }
    }

    /// Reads all of it.
    ///
    /// # Errors
    ///
    /// As [`History::next_batch`].
    pub async fn collect(mut self) -> Result<Vec<Event>, Error> {
        let mut all = Vec::new();
        while let Some(batch) = self.next_batch().await? {
            all.extend(batch);
        }
        Ok(all)
    }

    async fn begin(&self) -> Result<Range, Error> {
        let Selection { after, until, last, .. } = self.selection;
        let head = self.events.head(self.log).await?;
        let until = until.map_or(head.last, |until| until.min(head.last));
        let after = match last {
            Some(count) => {
                let first = self.events.first_after(self.log, 0).await?.unwrap_or(1);
                after.max(until - i64::from(count)).max(first - 1)
            }
            None => after,
        };
        Ok(Range { after, until })
    }
}
