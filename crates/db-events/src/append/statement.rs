//! The statement that appends: its parameters and its results.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use sqlx::{Executor, Postgres};

use crate::deadline::limited;
use crate::limits::{MAX_BYTES, MAX_EVENTS};
use crate::{Error, LogId, NewEvent, WriterId};

/// The name of the operation, in errors.
pub(super) const WHAT: &str = "append to an event log";

/// A checked batch, in the form in which the statement takes it.
pub(super) struct Batch<'a> {
    types: Vec<&'a str>,
    data: Vec<&'a str>,
    /// None if all events have version 1.
    versions: Option<Vec<i16>>,
    bytes: usize,
    finishes: bool,
    /// The writer, and its sequence number for the batch, if the batch is to be stored once.
    source: Option<(WriterId, i64)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(events: &'a [NewEvent], finishes: bool) -> Result<Self, Error> {
        let bytes = events.iter().map(NewEvent::bytes).sum();
        if !(1..=MAX_EVENTS).contains(&events.len()) || bytes > MAX_BYTES {
            return Err(Error::Size { events: events.len(), bytes });
        }
        for event in events {
            event.check()?;
        }
        let first: &str = &events[0].kind;
        let types = if events.iter().all(|event| event.kind == first) {
            vec![first]
        } else {
            events.iter().map(|event| Cow::as_ref(&event.kind)).collect()
        };
        let data = events.iter().map(|event| event.data.as_str()).collect();
        let versions = versions(events);
        Ok(Self { types, data, versions, bytes, finishes, source: None })
    }

    /// The batch under a sequence number of a writer, which may send it again.
    pub(super) fn of(self, writer: WriterId, sequence: i64) -> Self {
        Self { source: Some((writer, sequence)), ..self }
    }

    /// Returns `ids` if the batch that is stored with these ids under the same sequence number has the same events.
    pub(super) async fn recognize<'c>(
        &self,
        executor: impl Executor<'c, Database = Postgres>,
        log: LogId,
        ids: RangeInclusive<i64>,
    ) -> Result<RangeInclusive<i64>, Error> {
        let first = *ids.start();
        let is_same = sqlx::query_scalar(
            "select exists (
                 select
                 from event_log_batches
                 where log = $1 and first = $2 and types = $3 and data = $4
                     and is_final = $5 and versions is not distinct from $6
             )",
        )
        .bind(log.0)
        .bind(first)
        .bind(&self.types)
        .bind(&self.data)
        .bind(self.finishes)
        .bind(&self.versions)
        .fetch_one(executor);
        match (limited(WHAT, is_same).await?, self.source) {
            (false, Some((writer, sequence))) => Err(Error::SequenceReused { log, writer, sequence, first }),
            _ => Ok(ids),
        }
    }

    pub(super) fn len(&self) -> i64 {
        i64::try_from(self.data.len()).expect("at most MAX_EVENTS")
    }
}

/// One version for all, or one for each.
fn versions(events: &[NewEvent]) -> Option<Vec<i16>> {
    let first = events[0].version;
    if events.iter().any(|event| event.version != first) {
        return Some(events.iter().map(|event| event.version).collect());
    }
    (first != 1).then(|| vec![first])
}

/// What an attempt to append has done.
pub(super) enum Outcome {
    /// It has stored the batch, with these ids.
    Stored(RangeInclusive<i64>),
    /// It has stored nothing: a batch with the same writer and sequence number is stored, with these ids. [`Batch::recognize`]
    /// compares the two.
    SequenceUsed(RangeInclusive<i64>),
    /// It has stored nothing: another writer has appended meanwhile, and the log's tail has moved on.
    Raced,
}

/// How an attempt deals with other writers.
#[derive(Clone, Copy)]
pub(super) enum Attempt {
    /// It expects no other writer.
    AtOnce,
    /// It waits for its turn among the writers that have lost a race.
    InTurn,
}

/// The statement, with the parts that only some attempts need: a text for each attempt costs the server less than a parameter.
macro_rules! statement {
    ($turn:literal, $in_turn:literal) => {
        concat!(
            "with tail as (
                 select coalesce(batch.last, 0) as last, coalesce(batch.is_final, false) as is_final
                 from event_logs
                 left join lateral (
                     select last, is_final
                     from event_log_batches
                     where log = event_logs.id
                     order by first desc
                     limit 1
                 ) as batch on true
                 where event_logs.id = $1
             ), before as (
                 select first, last from event_log_batches where log = $1 and writer = $9 and sequence = $10
             )",
            $turn,
            ", stored as (
                 insert into event_log_batches (log, first, last, bytes, types, data, is_final, versions, writer, sequence)
                 select $1, tail.last + 1, tail.last + $2, $3, $4, $5, $6, $8, $9, $10
                 from tail
                 where not tail.is_final and ($7 is null or tail.last = $7) and not exists (select from before)",
            $in_turn,
            "    on conflict do nothing
                 returning first, last
             )
             select tail.last, tail.is_final, coalesce(stored.first, before.first), coalesce(stored.last, before.last),
                 before.first is not null
             from tail
             left join stored on true
             left join before on true"
        )
    };
}

/// Appends a batch after the log's last event, which must be `after` if that is given.
///
/// Losing a race must not be an error for the server: a violated constraint would cost a dead row, an entry in each index and a
/// line of the server's log. The loser inserts nothing instead. If an open transaction has inserted the same row, the statement
/// waits for its end: it inserts if that transaction rolls back, and does nothing if it commits. Rows committed after the
/// statement began are not in its snapshot, so the statement cannot return why it did nothing; the next attempt sees them. In a
/// transaction that keeps its snapshot, the server fails the statement instead (40001).
///
/// All losers wake when the winner commits. If two of them inserted at the same moment, the server would remove one row again, and
/// that is a dead row. So losers take turns, by a transaction-level advisory lock that only they take, whose key is the table and a
/// hash of the log. The lock only orders them: the primary key decides.
pub(super) async fn append<'c>(
    executor: impl Executor<'c, Database = Postgres>,
    log: LogId,
    after: Option<i64>,
    batch: &Batch<'_>,
    attempt: Attempt,
) -> Result<Outcome, Error> {
    let text = match attempt {
        Attempt::AtOnce => statement!("", ""),
        Attempt::InTurn => statement!(
            ", turn as materialized (
                 select pg_advisory_xact_lock('event_log_batches'::regclass::oid::int, hashint8($1))
             )",
            " and exists (select from turn)"
        ),
    };
    let statement = sqlx::query_as::<_, (i64, bool, Option<i64>, Option<i64>, bool)>(text)
        .bind(log.0)
        .bind(batch.len())
        .bind(i32::try_from(batch.bytes).expect("at most MAX_BYTES"))
        .bind(&batch.types)
        .bind(&batch.data)
        .bind(batch.finishes)
        .bind(after)
        .bind(&batch.versions)
        .bind(batch.source.map(|(WriterId(writer), _)| writer))
        .bind(batch.source.map(|(_, sequence)| sequence))
        .fetch_optional(executor);

    match limited(WHAT, statement).await? {
        None => Err(Error::UnknownLog(log)),
        Some((_, _, Some(first), Some(last), false)) => Ok(Outcome::Stored(first..=last)),
        Some((_, _, Some(first), Some(last), true)) => Ok(Outcome::SequenceUsed(first..=last)),
        Some((last, true, ..)) => Err(Error::Finished { log, last }),
        Some((last, false, ..)) => match after {
            Some(expected) if expected != last => Err(Error::Conflict { log, expected, last }),
            _ => Ok(Outcome::Raced),
        },
    }
}
