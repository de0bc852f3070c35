//! What is stored, without waiting for more.

use crate::page::{Continuity, Page, Wanted};
use crate::seen::Seen;
use crate::{Error, Event, EventLogs, Head, LogId};

/// Which events of a log are wanted. All of them, unless something else is said.
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
    /// Only what comes after an event.
    #[must_use]
    pub fn after(self, id: i64) -> Self {
        Self { after: id.max(0), ..self }
    }

    /// Only what comes up to an event, with it.
    #[must_use]
    pub fn until(self, id: i64) -> Self {
        Self { until: Some(id), ..self }
    }

    /// Only the last ones of them, counted before types are looked at.
    #[must_use]
    pub fn last(self, count: u32) -> Self {
        Self { last: Some(count), ..self }
    }

    /// Only those of some types. Batches without any of them are not read.
    #[must_use]
    pub fn kinds(self, kinds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { kinds: Some(kinds.into_iter().map(Into::into).collect()), ..self }
    }

    fn wants(&self, event: &Event) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|kind| **kind == *event.kind))
    }
}

/// The events of a log that were there when it was first asked for them, by pages.
#[derive(Debug)]
pub struct History {
    events: EventLogs,
    log: LogId,
    selection: Selection,
    /// None before the first page.
    range: Option<Range>,
    /// What was read, to find out whether the rest continues it.
    seen: Seen,
}

/// What is still to be read.
#[derive(Debug, Clone, Copy)]
struct Range {
    after: i64,
    until: i64,
}

impl History {
    pub(crate) fn new(events: EventLogs, log: LogId, selection: Selection) -> Self {
        Self { events, log, selection, range: None, seen: Seen::default() }
    }

    /// The next events that are wanted, at least one, in order; `None` when there are no more. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`]; [`Error::Removed`] and [`Error::Rewound`], when what is left to be read, or what was read, is not
    /// there any more; [`Error::Database`] and [`Error::TimedOut`]: ask again, and it goes on where it was.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let mut range = match self.range {
            Some(range) => range,
            None => self.begin(self.events.head(self.log).await?),
        };
        self.range = Some(range);
        while range.after < range.until {
            let kinds = self.selection.kinds.as_deref();
            let wanted = Wanted { until: range.until, kinds, ..Wanted::after(range.after) };
            let shared = self.events.shared();
            let permit = shared.catching_up().permit().await?;
            let page = Page::read(shared.pool(), self.log, wanted).await?;
            drop(permit);
            self.check(&page, range).await?;
            // Without another await, so that a future that is dropped has read nothing.
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

    /// Whether a page continues what was read, and has all that there was to be read.
    async fn check(&self, page: &Page, range: Range) -> Result<(), Error> {
        let is_whole = page.is_full || page.seen >= range.until;
        match page.continuity(range.after, self.seen.mark(range.after)) {
            Continuity::Removed => return Err(Error::Removed(self.log)),
            Continuity::Rewound => return Err(self.events.rewound(self.log, &self.seen).await?),
            Continuity::Continues | Continuity::AtEnd | Continuity::NoTrace
                if is_whole && self.selection.kinds.is_none() =>
            {
                return Ok(());
            }
            Continuity::Continues | Continuity::AtEnd | Continuity::NoTrace => {}
        }
        // Batches that have none of the types are not in the page. A log that is removed is gone before they are.
        let head = self.events.head(self.log).await?;
        if self.selection.kinds.is_none() || head.last < range.until {
            return Err(self.events.rewound(self.log, &self.seen).await?);
        }
        Ok(())
    }

    /// All of it at once.
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

    fn begin(&self, head: Head) -> Range {
        let Selection { after, until, last, .. } = self.selection;
        let until = until.map_or(head.last, |until| until.min(head.last));
        let after = last.map_or(after, |last| after.max(until - i64::from(last)));
        Range { after, until }
    }
}
