//! The advisory lock that a migrating session holds.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;

use crate::Error;
use crate::session::answer;

/// The key that sqlx's own migrator locks (`generate_lock_id` in sqlx-postgres 0.9.0).
fn key(database: &str) -> i64 {
    0x3d32_ad9e * i64::from(crc32fast::hash(database.as_bytes()))
}

/// Tries to take the lock until the deadline. The lock ends with the connection.
pub(crate) async fn acquire(
    connection: &mut PgConnection,
    database: &str,
    deadline: Duration,
) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let asked =
            sqlx::query_as("select pg_try_advisory_lock($1)").bind(key(database)).fetch_one(&mut *connection);
        let (free,): (bool,) = answer(asked).await.map_err(Error::database("take the migration lock"))?;
        if free {
            return Ok(());
        }
        let waited = started.elapsed();
        if waited >= deadline {
            let holder = holder(connection, key(database)).await;
            return Err(Error::Locked { database: database.to_owned(), waited, holder });
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..150))).await;
    }
}

/// The process that holds the lock. An error here is only logged, since it must not replace [`Error::Locked`].
async fn holder(connection: &mut PgConnection, key: i64) -> Option<i32> {
    let asked = sqlx::query_as(
        "select pid
         from pg_locks
         where locktype = 'advisory'
             and granted
             and objsubid = 1
             and (classid::bigint << 32) | objid::bigint = $1
             and database = (select oid from pg_database where datname = current_database())",
    )
    .bind(key)
    .fetch_optional(connection);
    let found: Result<Option<(i32,)>, _> = answer(asked).await;
    match found {
        Ok(row) => row.map(|(pid,)| pid),
        Err(error) => {
            tracing::debug!(%error, "cannot find the session that holds the migration lock");
            None
        }
    }
}
