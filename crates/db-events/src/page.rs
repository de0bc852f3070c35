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

/// How much text a page holds, but for its last batch.
const PAGE_BYTES: i64 = 1 << 20;
/// How many batches a page looks at.
const PAGE_BATCHES: i32 = 1000;

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
#[derive(Debug)]
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

#[derive(sqlx::FromRow)]
struct Row {
    first: i64,
    last: i64,
    bytes: i32,
    types: Vec<String>,
    data: Vec<String>,
    is_final: bool,
    at: OffsetDateTime,
    versions: Option<Vec<i16>>,
}

impl Page {
    /// All that comes after an event.
    pub(crate) async fn read(pool: &Pool, log: LogId, after: i64) -> Result<Self, Error> {
        Self::select(pool, log, after, i64::MAX, None).await
    }

    /// What comes after an event, up to another one, of the batches that have events of some types. One query, and one round trip.
    pub(crate) async fn select(
        pool: &Pool,
        log: LogId,
        after: i64,
        until: i64,
        kinds: Option<&[String]>,
    ) -> Result<Self, Error> {
        // `(select $1)` keeps the planner from looking at the value. Else it plans anew each time, which takes three times as long as
        // the query, and of a log that its statistics do not know yet it expects so little that `max(first)` would read all that
        // comes before the cursor.
        let query = sqlx::query_as(
            "select first, last, bytes, types, data, is_final, at, versions
             from (
                 select first, last, bytes, types, data, is_final, at, versions,
                     sum(bytes) over (order by first rows unbounded preceding) - bytes as before
                 from (
                     select *
                     from event_log_batches
                     where log = (select $1)
                         and first >= coalesce(
                             (
                                 select first
                                 from event_log_batches
                                 where log = (select $1) and first <= (select $2 + 1)
                                 order by first desc
                                 limit 1
                             ),
                             1
                         )
                         and last > $2
                         and first <= (select $5)
                         and ($6 is null or types && $6)
                     order by first
                     limit $3
                 ) as next
             ) as page
             where before < $4
             order by first",
        )
        .bind(log.0)
        .bind(after)
        .bind(PAGE_BATCHES)
        .bind(PAGE_BYTES)
        .bind(until)
        .bind(kinds)
        .fetch_all(pool.handle());
        // The wait for a connection has the pool's own limit.
        let limit = STATEMENT_LIMIT + STATEMENT_LIMIT;
        match timeout(limit, query).await {
            Ok(rows) => Ok(Self::of(rows.map_err(Error::database(WHAT))?, after, until)),
            Err(_) => Err(Error::TimedOut { what: WHAT, seconds: limit.as_secs() }),
        }
    }

    fn of(rows: Vec<Row>, after: i64, until: i64) -> Self {
        let bytes: i64 = rows.iter().map(|row| i64::from(row.bytes)).sum();
        let is_full = bytes >= PAGE_BYTES || i32::try_from(rows.len()).is_ok_and(|rows| rows >= PAGE_BATCHES);
        let is_final = rows.last().is_some_and(|row| row.is_final);
        let seen = rows.last().map_or(after, |row| row.last);
        let mut events = Vec::with_capacity(rows.iter().map(|row| row.data.len()).sum());
        for row in rows {
            let kinds: Vec<Arc<str>> = row.types.iter().map(|kind| kind.as_str().into()).collect();
            let versions = row.versions.as_deref().unwrap_or_default();
            for ((id, data), number) in (row.first..).zip(row.data).zip(0..) {
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
