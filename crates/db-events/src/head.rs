//! Where a log ends.

use std::collections::HashMap;

use sqlx::{Executor, Postgres};

use crate::LogId;

/// The end of a log, as it was when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last event, which is also the number of events; 0 for none.
    pub last: i64,
    /// Whether the log is finished: nothing will follow.
    pub is_finished: bool,
}

impl Head {
    /// Of each of these logs that there is.
    pub(crate) async fn read<'c>(
        executor: impl Executor<'c, Database = Postgres>,
        logs: &[i64],
    ) -> Result<HashMap<LogId, Self>, sqlx::Error> {
        let rows: Vec<(i64, i64, bool)> = sqlx::query_as(
            "select event_logs.id, coalesce(batch.last, 0), coalesce(batch.is_final, false)
             from event_logs
             left join lateral (
                 select last, is_final
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
        Ok(rows
            .into_iter()
            .map(|(log, last, is_finished)| (LogId(log), Self { last, is_finished }))
            .collect())
    }

    /// Whether the number was given out once, though there is no such log now.
    pub(crate) async fn was_there<'c>(
        executor: impl Executor<'c, Database = Postgres>,
        log: LogId,
    ) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar("select coalesce($1 between 1 and pg_sequence_last_value(pg_get_serial_sequence('event_logs', 'id')), false)")
            .bind(log.0)
            .fetch_one(executor)
            .await
    }
}
