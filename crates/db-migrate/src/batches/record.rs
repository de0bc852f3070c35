//! The progress on record, and the lock of a run.

use sqlx::postgres::PgConnection;

use super::ranges::Ranges;
use super::table::{Table, failed};
use super::{BatchError, Progress};
use crate::lock;
use crate::session::answer;

/// Where a run notes how far it is. Without the table `batch_runs`, nowhere.
pub(super) struct Record<'a> {
    name: &'a str,
    relation: &'a str,
    is_kept: bool,
}

impl<'a> Record<'a> {
    pub(super) async fn open(
        connection: &mut PgConnection,
        name: &'a str,
        relation: &'a str,
    ) -> Result<Self, BatchError> {
        let asked = sqlx::query_scalar("select to_regclass('batch_runs') is not null").fetch_one(connection);
        let is_kept: bool = answer(asked).await.map_err(failed("read the progress on", relation))?;
        if !is_kept {
            tracing::info!(name, "the table batch_runs is missing, so a run that is ended begins again");
        }
        Ok(Self { name, relation, is_kept })
    }

    /// The ranges of a run of this name that was ended before its time.
    pub(super) async fn unfinished(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<Ranges>, BatchError> {
        if !self.is_kept {
            return Ok(None);
        }
        let asked =
            sqlx::query_scalar("select ranges::text from batch_runs where name = $1 and finished_at is null")
                .bind(self.name)
                .fetch_optional(connection);
        let found: Option<String> =
            answer(asked).await.map_err(failed("read the progress on", self.relation))?;
        Ok(found.and_then(|ranges| serde_json::from_str(&ranges).ok()))
    }

    pub(super) async fn begin(
        &self,
        connection: &mut PgConnection,
        table: &Table,
        ranges: &Ranges,
    ) -> Result<(), BatchError> {
        if !self.is_kept {
            return Ok(());
        }
        let begun = sqlx::query(
            "insert into batch_runs (name, estimate, ranges) values ($1, $2, $3::jsonb)
             on conflict (name) do update set began_at = now(), noted_at = now(), finished_at = null,
               estimate = excluded.estimate, rows_read = 0, rows_written = 0, rows_per_second = 0, ranges = excluded.ranges",
        )
        .bind(self.name)
        .bind(table.estimate)
        .bind(serde_json::to_string(ranges).expect("ranges become JSON"))
        .execute(connection);
        answer(begun).await.map(|_| ()).map_err(failed("note the progress on", self.relation))
    }

    /// Adds what was done since the last note.
    pub(super) async fn note(
        &self,
        connection: &mut PgConnection,
        since: Progress,
        ranges: &Ranges,
        is_finished: bool,
    ) -> Result<(), BatchError> {
        if !self.is_kept {
            return Ok(());
        }
        let noted = sqlx::query(
            "update batch_runs set noted_at = now(), finished_at = case when $6 then now() end, rows_read = rows_read + $2,
               rows_written = rows_written + $3, rows_per_second = $4, ranges = $5::jsonb
             where name = $1",
        )
        .bind(self.name)
        .bind(i64::try_from(since.read).unwrap_or(i64::MAX))
        .bind(i64::try_from(since.written).unwrap_or(i64::MAX))
        .bind(since.rows_per_second)
        .bind(serde_json::to_string(ranges).expect("ranges become JSON"))
        .bind(is_finished)
        .execute(connection);
        answer(noted).await.map(|_| ()).map_err(failed("note the progress on", self.relation))
    }
}

/// Takes the locks of these columns, or names the holder of one. They end with the session.
pub(super) async fn lock(
    connection: &mut PgConnection,
    table: &Table,
    columns: &[&str],
) -> Result<(), BatchError> {
    let asked = sqlx::query_as(
        "select key, pg_try_advisory_lock(key)
         from unnest($2::text[]) as name, hashtextextended('db-migrate batches ' || $1::text || ' ' || name, 0) as key",
    )
    .bind(table.oid)
    .bind(columns)
    .fetch_all(&mut *connection);
    let locks: Vec<(i64, bool)> = answer(asked).await.map_err(failed("take the lock of", &table.relation))?;
    let Some((key, _)) = locks.iter().find(|(_, is_ours)| !is_ours) else { return Ok(()) };
    let holder = lock::holder(connection, *key).await;
    Err(BatchError::Busy { relation: table.relation.clone(), holder })
}

/// The WAL that the slowest standby has to replay, in bytes. None without a standby.
pub(super) async fn lag(connection: &mut PgConnection, relation: &str) -> Result<Option<u64>, BatchError> {
    let asked = sqlx::query_as(
        "select max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn))::bigint, count(*) filter (where state is null)
         from pg_stat_replication",
    )
    .fetch_one(connection);
    let (lag, hidden): (Option<i64>, i64) =
        answer(asked).await.map_err(failed("read how far standbys are, for", relation))?;
    if hidden > 0 {
        return Err(BatchError::Lag);
    }
    Ok(lag.map(|bytes| u64::try_from(bytes).unwrap_or(0)))
}
