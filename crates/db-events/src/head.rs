//! Where a log ends.

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
    /// `None` when there is no such log.
    pub(crate) async fn read<'c>(
        executor: impl Executor<'c, Database = Postgres>,
        log: LogId,
    ) -> Result<Option<Self>, sqlx::Error> {
        let row: Option<(i64, bool)> = sqlx::query_as(
            "select coalesce(batch.last, 0), coalesce(batch.is_final, false)
             from event_logs
             left join lateral (
                 select last, is_final
                 from event_log_batches
                 where log = event_logs.id
                 order by first desc
                 limit 1
             ) as batch on true
             where event_logs.id = $1",
        )
        .bind(log.0)
        .fetch_optional(executor)
        .await?;
        Ok(row.map(|(last, is_finished)| Self { last, is_finished }))
    }
}
