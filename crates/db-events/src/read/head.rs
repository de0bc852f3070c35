//! The ends of logs.

use std::collections::HashMap;

use sqlx::{Executor, Postgres};
use time::OffsetDateTime;

use crate::{LogId, Mark};

/// The end of a log at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// The last event, which is also the number of events that were ever appended; 0 for none.
    pub last: i64,
    /// Whether the log is finished: no event will follow.
    pub is_finished: bool,
    /// The mark of the last event; none without events.
    pub mark: Option<Mark>,
}

/// A log, and its last batch, if it has one.
#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    first: Option<i64>,
    last: Option<i64>,
    is_final: Option<bool>,
    at: Option<OffsetDateTime>,
    writer: Option<i64>,
    sequence: Option<i64>,
}

impl Row {
    fn head(&self) -> Head {
        let mark =
            self.first.zip(self.at).map(|(first, at)| Mark::of(first, at, self.writer.zip(self.sequence)));
        Head { last: self.last.unwrap_or(0), is_finished: self.is_final.unwrap_or(false), mark }
    }
}

impl Head {
    /// The heads of those of these logs that exist.
    pub(crate) async fn read<'c>(
        executor: impl Executor<'c, Database = Postgres>,
        logs: &[i64],
    ) -> Result<HashMap<LogId, Self>, sqlx::Error> {
        let rows: Vec<Row> = sqlx::query_as(
            "select event_logs.id, batch.*
             from event_logs
             left join lateral (
                 select first, last, is_final, at, writer, sequence
                 from event_log_batches
                 where log = event_logs.id
                 order by first desc
                 limit 1
             ) as batch on true
             where event_logs.id = any($1)",
        )
        .bind(logs)
        .fetch_all(executor)
        .await?;
        Ok(rows.iter().map(|row| (LogId(row.id), row.head())).collect())
    }
}

/// Whether a log with this number was created at some time.
pub(crate) async fn was_created<'c>(
    executor: impl Executor<'c, Database = Postgres>,
    log: LogId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select coalesce($1 between 1 and pg_sequence_last_value(pg_get_serial_sequence('event_logs', 'id')), false)")
        .bind(log.0)
        .fetch_one(executor)
        .await
}
