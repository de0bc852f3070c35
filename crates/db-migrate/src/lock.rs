//! The advisory lock that a migrating session holds.

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::Error;
use crate::session::answer;

/// The key of the lock on a database's migrations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key(i64);

impl Key {
    /// The key that sqlx's own migrator locks (`generate_lock_id` in sqlx-postgres 0.9.0).
    pub(crate) fn of(database: &str) -> Self {
        Self(0x3d32_ad9e * i64::from(crc32fast::hash(database.as_bytes())))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Tries to take the lock until the deadline. The lock ends with the connection.
pub(crate) async fn acquire(
    connection: &mut PgConnection,
    database: &str,
    deadline: Duration,
) -> Result<(), Error> {
    let Key(key) = Key::of(database);
    let started = Instant::now();
    loop {
        if try_once(connection, Key(key)).await? {
            return Ok(());
        }
        let waited = started.elapsed();
        if waited >= deadline {
            let holder = holder(connection, key).await;
            return Err(Error::Locked { database: database.to_owned(), waited, holder });
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..150))).await;
    }
}

/// Takes the lock if it is free. The lock ends with the connection.
pub(crate) async fn try_once(connection: &mut PgConnection, Key(key): Key) -> Result<bool, Error> {
    let sql = format!("select pg_try_advisory_lock({key})");
    let asked = connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql)));
    let free = answer(asked).await.and_then(|row| row.try_get(0));
    free.map_err(Error::database("take the migration lock"))
}

/// The processes that wait for the lock in the server, as sqlx's do, and not as [`acquire`] does.
pub(crate) async fn waiting(connection: &mut PgConnection, Key(key): Key) -> Vec<i32> {
    processes(connection, key, false).await
}

/// The process that holds an advisory lock.
pub(crate) async fn holder(connection: &mut PgConnection, key: i64) -> Option<i32> {
    processes(connection, key, true).await.first().copied()
}

/// The processes that hold an advisory lock, or wait for it. An error is only logged: it must not replace the one that the lock is held, and
/// changes nothing of what is to be done.
async fn processes(connection: &mut PgConnection, key: i64, granted: bool) -> Vec<i32> {
    let sql = format!(
        "select coalesce(array_agg(pid order by pid), '{{}}')
         from pg_locks
         where locktype = 'advisory'
             and granted = {granted}
             and objsubid = 1
             and (classid::bigint << 32) | objid::bigint = {key}
             and database = (select oid from pg_database where datname = current_database())"
    );
    let asked = connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql)));
    match answer(asked).await.and_then(|row| row.try_get(0)) {
        Ok(pids) => pids,
        Err(error) => {
            tracing::debug!(%error, granted, "cannot find the sessions of an advisory lock");
            Vec::new()
        }
    }
}
