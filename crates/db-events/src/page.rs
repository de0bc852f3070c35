//! What is read at once.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use db_core::Pool;
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::append::STATEMENT_LIMIT;
use crate::{Error, Event, LogId};

/// How much a page holds, in bytes of text, but for its last batch. An event counts as [`LEAST`] at least.
pub(crate) const PAGE_BYTES: i64 = 1 << 20;
/// How many batches a page looks at.
const PAGE_BATCHES: i32 = 1000;
/// About what an event takes in a reader's memory if it has no text: its fields, and some of what it was decoded from.
const LEAST: i64 = 128;

/// Reading, in errors.
pub(crate) const WHAT: &str = "read an event log";

/// Events of a log in their order, without holes, at least one. Cheap to clone: all who follow a log share them.
#[derive(Clone)]
pub struct Events {
    all: Arc<[Event]>,
    /// What comes before was seen already.
    from: usize,
}

impl Events {
    pub(crate) fn new(events: Vec<Event>) -> Self {
        Self { all: events.into(), from: 0 }
    }

    /// The last event's number.
    #[must_use]
    pub fn last_id(&self) -> i64 {
        self.last().map_or(0, |event| event.id)
    }

    /// Those after an event; none if there are none.
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

/// Copies each.
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

/// What a look at a log found after a cursor.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    /// None at the end.
    pub(crate) events: Option<Events>,
    /// Whether the log ends with them.
    pub(crate) is_final: bool,
    /// Whether there may be more.
    pub(crate) is_full: bool,
    /// The last event that was looked at.
    pub(crate) seen: i64,
}

/// A batch, or a part of one that is larger than a page.
#[derive(sqlx::FromRow)]
struct Row {
    first: i64,
    last: i64,
    /// How many events of the batch come before those that are here.
    skipped: i32,
    cost: i64,
    types: Vec<String>,
    data: Vec<String>,
    is_final: bool,
    at: OffsetDateTime,
    versions: Option<Vec<i16>>,
}

/// Which events a page is to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) after: i64,
    pub(crate) until: i64,
    /// Only batches that have events of these types; all if there are none.
    pub(crate) kinds: Option<&'a [String]>,
    /// At which size the page is full.
    pub(crate) bytes: i64,
}

impl Wanted<'_> {
    /// All that comes after an event.
    pub(crate) fn after(after: i64) -> Self {
        Self { after, until: i64::MAX, kinds: None, bytes: PAGE_BYTES }
    }
}

impl Page {
    /// Reads a page. One query, and one round trip.
    ///
    /// The plan is a scan of the primary key that ends with the page, whatever the planner knows of the table: nothing after a restore,
    /// or that of long ago. Hence each value is hidden from it in a `(select $1)`, which also spares it planning anew each time; the
    /// limit, too, so that it reckons with a tenth of what it expects and not with all of it; and the range is one of rows,
    /// `(log, first)`, of which it expects a ninth of the table, while of a log that it does not know it expects next to nothing,
    /// and then reads and sorts all that the log has.
    ///
    /// Of a batch that is larger than a page, only a part is sent.
    pub(crate) async fn read(pool: &Pool, log: LogId, wanted: Wanted<'_>) -> Result<Self, Error> {
        let query = sqlx::query_as(
            "select first, last, part.skipped, cost, is_final, at,
                 case when cost <= $4 then data else data[part.skipped + 1:part.skipped + part.taken] end as data,
                 case when cost <= $4 or cardinality(types) = 1 then types
                     else types[part.skipped + 1:part.skipped + part.taken] end as types,
                 case when cost <= $4 or cardinality(versions) = 1 then versions
                     else versions[part.skipped + 1:part.skipped + part.taken] end as versions
             from (
                 select *, sum(cost) over (order by log, first rows unbounded preceding) - cost as before
                 from (
                     select *, greatest(bytes, (last - first + 1) * $7) as cost
                     from event_log_batches
                     where (log, first) >= (
                             (select $1),
                             coalesce(
                                 (
                                     select case when last > $2 then first else last + 1 end
                                     from event_log_batches
                                     where log = (select $1) and first <= (select $2 + 1)
                                     order by log desc, first desc
                                     limit 1
                                 ),
                                 1
                             )
                         )
                         and (log, first) <= ((select $1), (select $5))
                         and case when (select $6) is null then true else types && (select $6) end
                     order by log, first
                     limit (select $3)
                 ) as next
             ) as page
             cross join lateral (
                 select case when cost <= $4 then 0 else greatest($2 + 1 - first, 0)::int end as skipped,
                     greatest($4 * (last - first + 1) / cost, 1)::int as taken
             ) as part
             where before < $4
             order by log, first",
        )
        .bind(log.0)
        .bind(wanted.after)
        .bind(PAGE_BATCHES)
        .bind(wanted.bytes)
        .bind(wanted.until)
        .bind(wanted.kinds)
        .bind(LEAST)
        .fetch_all(pool.handle());
        // The wait for a connection has the pool's own limit.
        let limit = STATEMENT_LIMIT + STATEMENT_LIMIT;
        match timeout(limit, query).await {
            Ok(rows) => Ok(Self::of(rows.map_err(Error::database(WHAT))?, wanted)),
            Err(_) => Err(Error::TimedOut { what: WHAT, seconds: limit.as_secs() }),
        }
    }

    fn of(rows: Vec<Row>, Wanted { after, until, bytes, .. }: Wanted<'_>) -> Self {
        let cost: i64 = rows.iter().map(|row| row.cost).sum();
        let is_full = cost >= bytes || i32::try_from(rows.len()).is_ok_and(|rows| rows >= PAGE_BATCHES);
        let (mut seen, mut is_final) = (after, false);
        let mut events = Vec::with_capacity(rows.iter().map(|row| row.data.len()).sum());
        for row in rows {
            let kinds: Vec<Arc<str>> = row.types.iter().map(|kind| kind.as_str().into()).collect();
            let versions = row.versions.as_deref().unwrap_or_default();
            let first = row.first + i64::from(row.skipped);
            seen = (first - 1).saturating_add_unsigned(row.data.len() as u64);
            is_final = row.is_final && seen == row.last;
            for ((id, data), number) in (first..).zip(row.data).zip(0..) {
                if id <= after || id > until {
                    continue;
                }
                let kind = kinds.get(number).or(kinds.first()).cloned().unwrap_or_default();
                let version = versions.get(number).or(versions.first()).copied().unwrap_or(1);
                events.push(Event { id, kind, version, data, at: row.at });
            }
        }
        let events = (!events.is_empty()).then(|| Events::new(events));
        Self { events, is_final, is_full: is_full && !is_final, seen }
    }
}
