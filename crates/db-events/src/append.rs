//! The one statement that appends.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use sqlx::{Executor, Postgres};
use tokio::time::timeout;

use crate::{Error, LogId, NewEvent, WriterId};

/// The most events in one append.
pub(crate) const MAX_EVENTS: usize = 10_000;
/// The most text in one append.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// How long one statement may take, the wait for a connection aside.
pub(crate) const STATEMENT_LIMIT: Duration = Duration::from_secs(30);

/// What is being done, in errors.
pub(crate) const WHAT: &str = "append to an event log";

/// A checked batch, in the form in which it is sent.
pub(crate) struct Batch<'a> {
    types: Vec<&'a str>,
    data: Vec<&'a str>,
    /// None if all are the first.
    versions: Option<Vec<i16>>,
    bytes: usize,
    finishes: bool,
    /// Whose batch it is, and which.
    source: Option<(WriterId, i64)>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(events: &'a [NewEvent], finishes: bool) -> Result<Self, Error> {
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

    /// The same from a writer who may send it again.
    pub(crate) fn from(self, writer: WriterId, sequence: i64) -> Self {
        Self { source: Some((writer, sequence)), ..self }
    }

    /// Whether this is what is stored after event `last`.
    pub(crate) async fn is_stored<'c>(
        &self,
        executor: impl Executor<'c, Database = Postgres>,
        log: LogId,
        last: i64,
    ) -> Result<bool, Error> {
        sqlx::query_scalar(
            "select exists (
                 select
                 from event_log_batches
                 where log = $1 and first = $2 + 1 and types = $3 and data = $4
                     and is_final = $5 and versions is not distinct from $6
             )",
        )
        .bind(log.0)
        .bind(last)
        .bind(&self.types)
        .bind(&self.data)
        .bind(self.finishes)
        .bind(&self.versions)
        .fetch_one(executor)
        .await
        .map_err(Error::database(WHAT))
    }

    /// Whose batch it is, and which.
    pub(crate) fn source(&self) -> Option<(WriterId, i64)> {
        self.source
    }

    pub(crate) fn len(&self) -> i64 {
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

/// What became of an attempt to append.
pub(crate) enum Outcome {
    Stored(RangeInclusive<i64>),
    /// A batch of the same writer and number was there before, and nothing is stored: [`Batch::is_stored`] tells whether that is
    /// this one.
    SequenceReused(RangeInclusive<i64>),
    /// Another writer was quicker: the tail has moved on, and nothing is stored. A transaction around the statement may be
    /// lost.
    Raced,
}

/// How an attempt meets other writers.
#[derive(Clone, Copy)]
pub(crate) enum Attempt {
    /// As if there were none.
    AtOnce,
    /// One after the other of those that have lost a race.
    InTurn,
}

/// The statement without what only some attempts need: a text for each attempt costs the server less than a parameter.
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
/// To lose a race is no error for the server: a violated constraint would cost a dead row, an entry in each index and a line of
/// the server's log. The loser inserts nothing instead. Where another transaction is inserting the same row, the statement waits
/// for its end, inserts if it was rolled back, and else does nothing. What was committed after our statement began is not in its
/// snapshot, so nothing that it returns explains why it did nothing: the next attempt sees it. A transaction that keeps its
/// snapshot is told of such a row by 40001.
///
/// All losers wake when the winner commits. Where two of them insert at the same moment, the server takes one row out again, which
/// is a dead row, too. So they come one after the other, by a lock of the transaction that only they take: its key is the table and
/// a hash of the log. Whatever it lets through, the primary key decides.
pub(crate) async fn append<'c>(
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

    let row = match timeout(STATEMENT_LIMIT, statement).await {
        Err(_) => {
            return Err(Error::TimedOut { what: WHAT, seconds: STATEMENT_LIMIT.as_secs() });
        }
        Ok(Err(error)) => {
            let cause = db_core::Error::from(error);
            return if cause.sqlstate().as_deref() == Some("40001") {
                Ok(Outcome::Raced)
            } else {
                Err(Error::Database { what: WHAT, cause })
            };
        }
        Ok(Ok(row)) => row,
    };
    match row {
        None => Err(Error::UnknownLog(log)),
        Some((_, _, Some(first), Some(last), false)) => Ok(Outcome::Stored(first..=last)),
        Some((_, _, Some(first), Some(last), true)) => Ok(Outcome::SequenceReused(first..=last)),
        Some((last, true, ..)) => Err(Error::Finished { log, last }),
        Some((last, false, ..)) => match after {
            Some(expected) if expected != last => Err(Error::Conflict { log, expected, last }),
            _ => Ok(Outcome::Raced),
        },
    }
}
