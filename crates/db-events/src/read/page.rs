//! A page: the events that one query reads, and whether they continue what was read before.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use db_core::Pool;
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::limits::STATEMENT_LIMIT;
use crate::{Error, Event, LogId, Mark};

/// The bytes of text at which a page is full. Its last batch may exceed them. An event counts as [`LEAST`] bytes at least.
pub(crate) const PAGE_BYTES: i64 = 1 << 20;
/// The most batches in a page.
const PAGE_BATCHES: i32 = 1000;
/// About the memory of an event without text, in bytes: its fields, and a part of the row that it was decoded from.
const LEAST: i32 = 128;

/// The most bytes of text in a batch that a connection keeps room for in its buffer.
const LARGE: i32 = 256 << 10;

/// The name of the operation, in errors.
pub(crate) const WHAT: &str = "read an event log";

/// Consecutive events of a log, at least one. Cheap to clone: all followers of a log share them.
#[derive(Clone)]
pub struct Events {
    all: Arc<[Event]>,
    /// The index of the first event that the reader has not seen.
    from: usize,
    /// The mark of the event before all of them, if the query has read that event.
    before: Option<Mark>,
}

impl Events {
    pub(crate) fn new(events: Vec<Event>, before: Option<Mark>) -> Self {
        Self { all: events.into(), from: 0, before }
    }

    /// The last event's id.
    #[must_use]
    pub fn last_id(&self) -> i64 {
        self.last().map_or(0, |event| event.id)
    }

    /// Whether these events continue a log that was read up to `cursor`: none is missing in between, the event at `cursor` has the
    /// mark that the reader knows, if it knows one, and the log is not finished with an event before it.
    pub(crate) fn continue_after(&self, cursor: i64, mark: Option<Mark>, is_finished: bool) -> bool {
        let Some(first) = self.all.first().map(|event| event.id) else { return true };
        let there = if cursor + 1 == first {
            self.before
        } else {
            let number = usize::try_from(cursor - first).ok();
            number.and_then(|number| self.all.get(number)).map(|event| event.mark)
        };
        let is_other = there.zip(mark).is_some_and(|(there, seen)| there != seen);
        let ends_before = is_finished && self.last_id() < cursor;
        first <= cursor + 1 && !is_other && !ends_before
    }

    /// The events after `cursor`, if there are any.
    pub(crate) fn after(mut self, cursor: i64) -> Option<Self> {
        self.from += self.iter().take_while(|event| event.id <= cursor).count();
        (!self.is_empty()).then_some(self)
    }
}

impl Deref for Events {
    type Target = [Event];

    fn deref(&self) -> &[Event] {
        &self.all[self.from..]
    }
}

impl Borrow<[Event]> for Events {
    fn borrow(&self) -> &[Event] {
        self
    }
}

impl AsRef<[Event]> for Events {
    fn as_ref(&self) -> &[Event] {
        self
    }
}

impl PartialEq for Events {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Events {}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Clones each event.
impl IntoIterator for Events {
    type Item = Event;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(self)
    }
}

/// The events of [`Events`], one by one.
#[derive(Debug, Clone)]
pub struct IntoIter(Events);

impl Iterator for IntoIter {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let event = self.0.first().cloned()?;
        self.0.from += 1;
        Some(event)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl ExactSizeIterator for IntoIter {}

/// Whether the page after a cursor continues what was read up to the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// The page's events come next.
    Continues,
    /// The cursor is at the log's end.
    AtEnd,
    /// Events after the cursor were removed.
    Removed,
    /// The event at the cursor is not the one that was seen.
    Rewound,
    /// Neither the event at the cursor nor one after it is there: the log is empty, gone, or ends before the cursor.
    NoTrace,
}

/// The batch that holds the cursor after which a page was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) mark: Mark,
    last: i64,
}

/// The events after a cursor.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    /// None if no batch holds the cursor, as before the first event.
    pub(crate) anchor: Option<Anchor>,
    /// Whether the next batch that is there does not begin right after the cursor.
    has_hole: bool,
    /// None if there are none.
    pub(crate) events: Option<Events>,
    /// Whether the log is finished with these events.
    pub(crate) is_finished: bool,
    /// Whether there may be more events.
    pub(crate) is_full: bool,
    /// The batches that the query for the next page should [look at](Wanted::batches).
    pub(crate) next_batches: i32,
    /// The last event that the query has read.
    pub(crate) seen: i64,
}

/// Batches of a log are often alike: after a page that was full of text, a few more than it had.
fn next_batches(had: i32, was_full_of_text: bool) -> i32 {
    if was_full_of_text { (had + had / 4 + 8).min(PAGE_BATCHES) } else { PAGE_BATCHES }
}

/// A batch, or a part of a batch that is larger than two pages.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Row {
    first: i64,
    last: i64,
    bytes: i32,
    /// The number of events of the batch that come before the part.
    skipped: i32,
    cost: i32,
    /// None for a batch without events after the cursor.
    types: Option<Vec<String>>,
    data: Option<Vec<String>>,
    versions: Option<Vec<i16>>,
    is_final: bool,
    at: OffsetDateTime,
    writer: Option<i64>,
    sequence: Option<i64>,
}

impl Row {
    fn mark(&self) -> Mark {
        Mark::of(self.first, self.at, self.writer.zip(self.sequence))
    }

    /// Whether the batch is so large that its connection should not keep room for another one.
    fn is_large(&self) -> bool {
        self.data.is_some() && self.bytes > LARGE
    }

    /// Whether this row is no batch, but the fence of a log that is being removed.
    fn is_fence(&self) -> bool {
        self.bytes == 0
    }
}

/// The events that a page is to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) after: i64,
    pub(crate) until: i64,
    /// Only batches that have events of these kinds; None for all.
    pub(crate) kinds: Option<&'a [String]>,
    /// The size at which the page is full.
    pub(crate) bytes: i64,
    /// The most batches that the query looks at. The server adds up the sizes of all of them, also of those that the page has no room
    /// for.
    pub(crate) batches: i32,
}

impl Wanted<'_> {
    /// All events after an event.
    pub(crate) fn after(after: i64) -> Self {
        Self { after, until: i64::MAX, kinds: None, bytes: PAGE_BYTES, batches: PAGE_BATCHES }
    }
}

impl Page {
    /// Reads a page, with one query and one round trip.
    ///
    /// The plan must be a scan of the primary key that ends with the page, even if the planner has no statistics of the table, as after
    /// a restore, or old ones. Therefore each value is hidden from the planner in a `(select $1)`, so that the generic plan is as good
    /// as any and is kept. The limit is hidden, too: the planner then expects a tenth of the rows instead of all. And the range is one of
    /// rows, `(log, first)`, of which the planner expects a ninth of the table; of a log that it does not know it would expect next to
    /// no rows, and read and sort all of them.
    ///
    /// The cost of a batch is an `int`: a sum of `bigint` is `numeric`, with which a page of many batches takes half as long again.
    ///
    /// Of a batch that is larger than two pages, only a part is sent. The batch that holds the cursor is sent without its data: its
    /// mark shows whether the page continues what was seen.
    pub(crate) async fn read(pool: &Pool, log: LogId, wanted: Wanted<'_>) -> Result<Self, Error> {
        let query = sqlx::query_as(
            "select first, last, bytes, part.skipped, cost, is_final, at, writer, sequence,
                 case when last <= $2 then null when part.is_whole then data
                     else data[part.skipped + 1:part.skipped + part.taken] end as data,
                 case when last <= $2 then null when part.is_whole or cardinality(types) = 1 then types
                     else types[part.skipped + 1:part.skipped + part.taken] end as types,
                 case when last <= $2 then null when part.is_whole or cardinality(versions) = 1 then versions
                     else versions[part.skipped + 1:part.skipped + part.taken] end as versions
             from (
                 select *, sum(cost) over (order by log, first rows unbounded preceding) - cost as before
                 from (
                     select *,
                         case when last > $2 then greatest(bytes, (least(last - first, 1000000) + 1)::int * $7) else 0 end as cost
                     from event_log_batches
                     where (log, first) >= (
                             (select $1),
                             coalesce(
                                 (
                                     select case when last >= $2 then first else last + 1 end
                                     from event_log_batches
                                     where log = (select $1) and first <= (select $2)
                                     order by log desc, first desc
                                     limit 1
                                 ),
                                 1
                             )
                         )
                         and (log, first) <= ((select $1), (select $5))
                         and case when (select $6) is null or first <= $2 then true else types && (select $6) end
                     order by log, first
                     limit (select $3)
                 ) as next
             ) as page
             cross join lateral (
                 select cost <= 2 * $4 as is_whole,
                     case when cost <= 2 * $4 then 0 else greatest($2 + 1 - first, 0)::int end as skipped,
                     greatest($4 * (last - first + 1) / greatest(cost, 1), 1)::int as taken
             ) as part
             where before < $4
             order by log, first",
        )
        .bind(log.0)
        .bind(wanted.after)
        .bind(wanted.batches + i32::from(wanted.after > 0))
        .bind(wanted.bytes)
        .bind(wanted.until)
        .bind(wanted.kinds)
        .bind(LEAST);
        let read = async {
            let mut conn = pool.handle().acquire().await?;
            let rows: Vec<Row> = query.fetch_all(&mut conn).await?;
            if rows.iter().any(Row::is_large) {
                // The page is complete, so a failure here does not concern it; the pool replaces the connection.
                let _: Result<_, _> = conn.shrink_buffers().await;
            }
            Ok(rows)
        };
        // The wait for a connection has the pool's own limit.
        let limit = STATEMENT_LIMIT + STATEMENT_LIMIT;
        match timeout(limit, read).await {
            Ok(rows) => Ok(Self::of(rows.map_err(|cause| Error::Database { what: WHAT, cause })?, wanted)),
            Err(_) => Err(Error::TimedOut { what: WHAT, seconds: limit.as_secs() }),
        }
    }

    /// A page of these rows, up to the first row that does not continue the row before. Rows of some kinds only may have holes.
    fn of(rows: Vec<Row>, wanted: Wanted<'_>) -> Self {
        let Wanted { after, until, kinds, bytes, batches: most } = wanted;
        let (mut cost, mut batches, mut count) = (0, 0, 0);
        for row in rows.iter().filter(|row| row.last > after) {
            cost += i64::from(row.cost);
            batches += 1;
            count += row.data.as_ref().map_or(0, Vec::len);
        }
        let mut page = Self {
            anchor: None,
            has_hole: false,
            events: None,
            is_finished: false,
            is_full: cost >= bytes || batches >= most,
            next_batches: next_batches(batches, cost >= bytes),
            seen: after,
        };
        let mut events = Vec::with_capacity(count);
        for row in rows {
            if row.is_fence() || kinds.is_none() && row.first > page.seen + 1 {
                page.has_hole = events.is_empty();
                page.is_full = true;
                page.is_finished = false;
                break;
            }
            let mark = row.mark();
            if row.first <= after {
                page.anchor = Some(Anchor { mark, last: row.last });
            }
            let data = row.data.unwrap_or_default();
            let kinds: Vec<Arc<str>> =
                row.types.unwrap_or_default().iter().map(|kind| kind.as_str().into()).collect();
            let versions = row.versions.as_deref().unwrap_or_default();
            let first = row.first + i64::from(row.skipped);
            page.seen = page.seen.max((first - 1).saturating_add_unsigned(data.len() as u64));
            page.is_finished = row.is_final && page.seen == row.last;
            for ((id, data), number) in (first..).zip(data).zip(0..) {
                if id <= after || id > until {
                    continue;
                }
                let kind = kinds.get(number).or(kinds.first()).cloned().unwrap_or_default();
                let version = versions.get(number).or(versions.first()).copied().unwrap_or(1);
                events.push(Event { id, kind, version, data, at: row.at, mark });
            }
        }
        page.is_full &= !page.is_finished;
        let before = page.anchor.map(|anchor| anchor.mark);
        page.events = (!events.is_empty()).then(|| Events::new(events, before));
        page
    }

    /// Whether this page, which was read after event `after`, continues what a reader has seen up to that event. `mark` is the event's
    /// mark, if the reader knows it.
    pub(crate) fn continuity(&self, after: i64, mark: Option<Mark>) -> Continuity {
        let there = self.anchor.map(|anchor| anchor.mark);
        if there.zip(mark).is_some_and(|(there, seen)| there != seen) {
            return Continuity::Rewound;
        }
        match (&self.events, self.anchor) {
            _ if self.has_hole => Continuity::Removed,
            // The event that was seen is gone, so nothing shows that the page continues it.
            (Some(_), None) if mark.is_some() => Continuity::Removed,
            (Some(_), _) => Continuity::Continues,
            (None, Some(anchor)) if anchor.last == after => Continuity::AtEnd,
            (None, _) => Continuity::NoTrace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of two events.
    fn row(first: i64) -> Row {
        Row {
            first,
            last: first + 1,
            bytes: 4,
            skipped: 0,
            cost: 4,
            types: Some(vec!["n".to_owned()]),
            data: Some(vec!["1".to_owned(), "2".to_owned()]),
            versions: None,
            is_final: false,
            at: OffsetDateTime::UNIX_EPOCH,
            writer: None,
            sequence: None,
        }
    }

    fn page(rows: impl IntoIterator<Item = Row>, after: i64) -> Page {
        Page::of(rows.into_iter().collect(), Wanted::after(after))
    }

    fn ids(page: &Page) -> Vec<i64> {
        page.events.iter().flat_map(|events| events.iter()).map(|event| event.id).collect()
    }

    #[test]
    fn a_page_shows_whether_it_continues_its_cursor() {
        let mark = row(1).mark();
        let other = row(3).mark();
        let fence = || Row { bytes: 0, last: 3, types: None, data: None, is_final: true, ..row(3) };
        for (rows, after, known, expected) in [
            (vec![], 0, None, Continuity::NoTrace),
            (vec![], 7, None, Continuity::NoTrace),
            (vec![], 7, Some(mark), Continuity::NoTrace),
            (vec![row(1)], 0, None, Continuity::Continues),
            (vec![row(1)], 1, None, Continuity::Continues),
            (vec![row(1)], 1, Some(mark), Continuity::Continues),
            (vec![row(1)], 1, Some(other), Continuity::Rewound),
            (vec![row(1)], 2, None, Continuity::AtEnd),
            (vec![row(1)], 2, Some(mark), Continuity::AtEnd),
            (vec![row(1)], 2, Some(other), Continuity::Rewound),
            (vec![row(1), row(3)], 2, Some(mark), Continuity::Continues),
            (vec![row(1), row(3)], 2, Some(other), Continuity::Rewound),
            // Events up to the cursor were removed, and none after it.
            (vec![row(3)], 2, None, Continuity::Continues),
            (vec![row(3)], 2, Some(mark), Continuity::Removed),
            (vec![row(3)], 0, None, Continuity::Removed),
            (vec![row(3)], 1, Some(mark), Continuity::Removed),
            (vec![row(1), row(5)], 2, Some(mark), Continuity::Removed),
            (vec![row(1), fence()], 2, Some(mark), Continuity::Removed),
            (vec![fence()], 2, None, Continuity::Removed),
            (vec![fence()], 3, None, Continuity::Removed),
        ] {
            let shown = format!("{rows:?} after {after}, {known:?}");
            assert_eq!(page(rows, after).continuity(after, known), expected, "{shown}");
        }
    }

    #[test]
    fn a_page_is_full_at_its_size_and_at_its_number_of_batches() {
        let rows = || [row(1), row(3), row(5)];
        let page = |bytes, batches| {
            let page = Page::of(rows().to_vec(), Wanted { bytes, batches, ..Wanted::after(0) });
            (page.is_full, page.next_batches)
        };

        assert_eq!(page(13, 4), (false, PAGE_BATCHES));
        assert_eq!(page(12, 4), (true, 3 + 8), "of text");
        assert_eq!(page(13, 3), (true, PAGE_BATCHES), "of batches, and text may fit in");
        assert_eq!(next_batches(PAGE_BATCHES, true), PAGE_BATCHES);
    }

    #[test]
    fn a_page_ends_before_a_hole_and_is_not_the_last_one() {
        let end = || Row { is_final: true, ..row(5) };

        let whole = page([row(1), row(3), end()], 0);
        let cut = page([row(1), end()], 0);

        assert_eq!((ids(&whole), whole.is_finished, whole.is_full), (vec![1, 2, 3, 4, 5, 6], true, false));
        assert_eq!((ids(&cut), cut.is_finished, cut.is_full), (vec![1, 2], false, true));
        assert_eq!((cut.seen, cut.continuity(0, None)), (2, Continuity::Continues));
        // A page of one kind has only the batches with that kind.
        let kinds = ["n".to_owned()];
        let some = Page::of(vec![row(1), end()], Wanted { kinds: Some(&kinds), ..Wanted::after(0) });
        assert_eq!((ids(&some), some.is_finished), (vec![1, 2, 5, 6], true));
    }

    #[test]
    fn published_events_continue_what_was_seen_or_not() {
        let events = page([row(1), row(3), row(5)], 2).events.expect("events");
        let (before, within) = (row(1).mark(), row(3).mark());

        for (cursor, mark, is_finished, continues) in [
            (0, None, false, false),
            (1, None, false, false),
            (2, None, false, true),
            (2, Some(before), false, true),
            (2, Some(within), false, false),
            (3, Some(within), false, true),
            (3, Some(before), false, false),
            (4, Some(within), false, true),
            (6, Some(row(5).mark()), false, true),
            (6, Some(before), false, false),
            // The reader has seen all of them.
            (7, Some(before), false, true),
            (6, Some(row(5).mark()), true, true),
            // The reader has seen events that the log has lost: nothing follows a finished log.
            (7, Some(before), true, false),
            (9, None, true, false),
        ] {
            assert_eq!(
                events.continue_after(cursor, mark, is_finished),
                continues,
                "{cursor} {mark:?} {is_finished}"
            );
        }
    }
}
