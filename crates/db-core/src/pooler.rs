//! Connection poolers, and the statements that do not work behind them.

use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

use crate::CallSite;

/// Whether the connections of an address go through a pooler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pooler {
    /// Each connection has a session of its own: the server itself, or `PgBouncer` in session mode.
    #[default]
    None,
    /// A pooler in transaction mode, such as `PgBouncer` with `pool_mode = transaction`: each transaction, and each statement
    /// outside a transaction, may run in another session.
    ///
    /// The differences:
    ///
    /// * Settings that a pooler would refuse are not sent at login. The limits of [`PoolOptions`](crate::PoolOptions) for
    ///   statements and idle transactions are sent with each `BEGIN`.
    /// * An abandoned statement is not cancelled, since the session's process id is not known: its connection waits up to 2 s for the
    ///   end of the statement, and is closed otherwise.
    /// * A statement that needs a session of its own is refused: see [`PoolerError`].
    /// * The pooler must track prepared statements, as `PgBouncer` does from 1.21 on with `max_prepared_statements` above
    ///   zero. Each pool checks that on its first connection, and fails to connect otherwise.
    /// * [`Session::pid`](crate::Session::pid) and other process ids are 0.
    Transaction,
}

/// What a statement needs of its session beyond its own transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The channels that the session listens on.
    Listen,
    /// Its advisory locks.
    Lock,
    /// Its settings and loaded libraries.
    Setting,
    /// Its prepared statements.
    Prepared,
    /// Its temporary objects.
    Temporary,
    /// Its cursors that outlive their transaction.
    Cursor,
}

/// A statement was not sent: it needs a session of its own, and a [pooler](Pooler::Transaction) would give its session to other
/// clients.
///
/// Refused are `LISTEN` and `UNLISTEN`; the functions that lock or unlock for the session, such as `pg_advisory_lock`;
/// `SET` without `LOCAL`, `set_config(…, false)`, `RESET`, `DISCARD` and `LOAD`; `PREPARE` and `DEALLOCATE` as SQL; temporary
/// tables without `ON COMMIT DROP`, and cursors `WITH HOLD`. Most have a form that ends with the transaction. Each statement
/// of a raw text is checked. The effects inside your own functions are not seen.
#[derive(Debug, Clone)]
pub struct PoolerError {
    pool: String,
    at: CallSite,
    needs: Needs,
}

impl PoolerError {
    pub(crate) fn new(pool: &str, at: CallSite, needs: Needs) -> Self {
        Self { pool: pool.to_owned(), at, needs }
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }
}

impl fmt::Display for PoolerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, instead) = match self.needs {
            Needs::Listen => ("LISTEN", "use the bus"),
            Needs::Lock => (
                "a session-level advisory lock",
                "use a transaction-level lock, such as pg_advisory_xact_lock",
            ),
            Needs::Setting => ("a session setting", "use SET LOCAL in a transaction"),
            Needs::Prepared => ("PREPARE", "let the driver prepare statements"),
            Needs::Temporary => ("a temporary table", "create it in a transaction, with ON COMMIT DROP"),
            Needs::Cursor => ("a cursor WITH HOLD", "read it inside the transaction"),
        };
        let Self { pool, at, .. } = self;
        write!(
            f,
            "pool `{pool}`: {what} needs a session of its own, but the pooler gives the session to other clients after the \
                 transaction: {instead}, or use a pool of the direct address (acquire at {at})"
        )
    }
}

impl std::error::Error for PoolerError {}

impl From<PoolerError> for sqlx::Error {
    /// sqlx's `Executor` can fail with sqlx's error only. [`Error`](crate::Error)'s `From` unwraps this error again.
    fn from(error: PoolerError) -> Self {
        Self::Configuration(Box::new(error))
    }
}

/// Looks for its own text. A pooler that tracks prepared statements gives them its own names on the server.
const PROBE: &str = r"select coalesce(bool_or(name not like 'sqlx\_s\_%'), false) from pg_prepared_statements where statement = $1";

/// Checks that a pooler tracks prepared statements: that a statement prepared on a connection is known in every session in which that
/// connection's transactions run. The check reads the statement's name, since a trial proves nothing: without other clients, all
/// transactions run in one session.
pub(crate) async fn tracks_prepared_statements(raw: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // In a transaction, so that preparing and looking happen in the same session.
    raw.execute(sqlx::raw_sql("BEGIN")).await?;
    let tracks = match sqlx::query(PROBE).bind(PROBE).fetch_one(&mut *raw).await {
        Ok(row) => row.try_get(0)?,
        // The session has a statement of that name from another client, so the pooler does not rename them.
        Err(error)
            if error
                .as_database_error()
                .and_then(DatabaseError::code)
                .is_some_and(|code| code == "42P05") =>
        {
            false
        }
        Err(error) => return Err(error),
    };
    if !tracks {
        raw.clear_cached_statements().await?;
    }
    raw.execute(sqlx::raw_sql("ROLLBACK")).await?;
    Ok(tracks)
}
