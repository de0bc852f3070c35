//! The session that migrations run in.

use std::fmt::{self, Write};
use std::time::Duration;

use db_core::{Config, ConnectError, ConnectRetry, connect};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::time::timeout;

use crate::Error;
use crate::lock::Key;

/// Limit for a query that waits for no lock. The driver detects no dead link by itself, so without a limit such a query could
/// wait for ever.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The query's result, or a timed-out I/O error, which counts as a lost connection.
pub(crate) async fn answer<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_LIMIT, asked)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Opens a session whose statements have no limit of the role's or the database's, which are made for statements of a service.
pub(crate) async fn open(config: &Config, retry: ConnectRetry) -> Result<PgConnection, ConnectError> {
    let mut connection = connect::connect(config, retry).await?;
    lift_limit(&mut connection).await;
    Ok(connection)
}

/// Lifts a session's limit for statements by one that is neither planned nor looks anything up, so that hardly any limit ends it.
pub(crate) async fn lift_limit(connection: &mut PgConnection) {
    let set = connection.execute(sqlx::raw_sql("set statement_timeout = 0"));
    if let Err(error) = answer(set).await {
        // If the connection is lost, the next statement fails, too.
        tracing::debug!(%error, "a session keeps its limit for statements");
    }
}

/// The settings that migrations run with, where the server has them, in the units of `pg_settings`.
///
/// Limits of the role or of the database are made for statements of a service, and would end migrations.
///
/// A migration may send nothing for long, so TCP keepalive keeps the link open. If the client dies, the server must notice
/// while the migration runs, and not only when it sends the result: until then its session holds the lock. The settings are
/// those of PostgreSQL's manual, chapter 20.3.2 "TCP Settings".
const SETTINGS: [(&str, &str); 9] = [
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // From 14 on. While a step of the program runs elsewhere, the session with the lock is idle.
    ("idle_session_timeout", "0"),
    // From 17 on.
    ("transaction_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("tcp_keepalives_idle", "15"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    // From 14 on, and not on every operating system.
    (CHECK_INTERVAL, "1000"),
];

const CHECK_INTERVAL: &str = "client_connection_check_interval";

/// The statement that lifts, for a transaction of another session, the limits that the role or the database has.
pub(crate) fn without_limits() -> String {
    let limits = SETTINGS.iter().filter(|(name, _)| name.ends_with("_timeout"));
    let values: Vec<String> = limits.map(|(name, value)| format!("('{name}', '{value}')")).collect();
    format!(
        "select set_config(name, value, true) from (values {}) as wanted (name, value) join pg_settings using (name);",
        values.join(", ")
    )
}

/// What `discard all` puts back, but for advisory locks: it would release the migration lock, too. Roles are put back before the record
/// is written.
const DISCARD: &str =
    "close all; reset all; deallocate all; unlisten *; discard plans; discard temp; discard sequences;";

/// How long a statement waits for a lock. Displayed as the statement that sets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockTimeout(pub(crate) Duration);

impl LockTimeout {
    /// Its value in SQL.
    pub(crate) fn milliseconds(self) -> u128 {
        // 0 would be no limit.
        self.0.as_millis().clamp(1, i32::MAX.unsigned_abs().into())
    }
}

impl fmt::Display for LockTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set lock_timeout = {};", self.milliseconds())
    }
}

/// Puts a session back between two migrations.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: Key,
    /// The session's server process.
    pub(crate) pid: i32,
    /// The statements that give our settings their value again after a reset. A look into `pg_settings` would take longer than a small
    /// migration, and so would setting what has its value already.
    settings: String,
}

impl Session {
    /// Prepares a session for migrations, whose statements wait for a lock for at most `lock_timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Standby`] if the server only reads.
    pub(crate) async fn prepare(
        connection: &mut PgConnection,
        key: Key,
        lock_timeout: LockTimeout,
    ) -> Result<Self, Error> {
        let what = "prepare the session of the migrations";
        let (names, values): (Vec<&str>, Vec<&str>) = SETTINGS.iter().copied().unzip();
        // The others have their value, also after a reset. TCP's are of no use on a Unix socket.
        let asked = sqlx::query_as(
            "select pg_is_in_recovery(), pg_backend_pid(),
               array(select name from unnest($1::text[], $2::text[]) as wanted (name, value) join pg_settings using (name)
                     where (setting, reset_val) <> (value, value)
                       and (name not like 'tcp%' or inet_client_addr() is not null))",
        )
        .bind(&names)
        .bind(&values)
        .persistent(false)
        .fetch_one(&mut *connection);
        let found = answer(asked).await.map_err(Error::database(what))?;
        let (is_standby, pid, different): (bool, i32, Vec<String>) = found;
        if is_standby {
            return Err(Error::Standby);
        }
        let mut settings = lock_timeout.to_string();
        let is_set = |name: &str| different.iter().any(|it| it == name);
        for (name, value) in SETTINGS.iter().filter(|(name, _)| *name != CHECK_INTERVAL && is_set(name)) {
            // Writing to a string does not fail.
            let _ = write!(settings, "set {name} = {value};");
        }
        let set = connection.execute(sqlx::raw_sql(AssertSqlSafe(settings.clone())));
        answer(set).await.map_err(Error::database(what))?;
        if is_set(CHECK_INTERVAL) {
            let set = format!("set {CHECK_INTERVAL} = 1000;");
            match answer(connection.execute(sqlx::raw_sql(AssertSqlSafe(set.clone())))).await {
                Ok(_) => settings.push_str(&set),
                // If the connection is lost, the next statement fails, too.
                Err(error) => {
                    tracing::debug!(%error, "the server will not notice during a migration that this client is gone");
                }
            }
        }
        Ok(Self { key, pid, settings })
    }

    /// The statements that put the session back, and release the advisory locks that a migration has left. The answer has two rows:
    /// see [`has_lock`](Self::has_lock).
    ///
    /// All advisory locks of the session are released at once, without a moment in which another session could take the migration lock:
    /// meanwhile the transaction holds that lock, too.
    pub(crate) fn put_back(&self) -> String {
        let Self { key, settings, .. } = self;
        format!(
            "{DISCARD} {settings}
             select pg_try_advisory_xact_lock({key}), pg_advisory_unlock({key});
             select pg_advisory_unlock_all(), pg_try_advisory_lock({key});"
        )
    }

    /// Whether the session had the migration lock, and has it again.
    pub(crate) fn has_lock(held: &PgRow, again: &PgRow) -> Result<bool, sqlx::Error> {
        Ok(held.try_get(1)? && again.try_get(1)?)
    }
}
