//! What may stand between a service and its server, and what does not get past it.

use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

use crate::CallSite;

/// What the connections of an address lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pooler {
    /// A session of the server's, which is there for as long as the connection. So it is with `PgBouncer` in its session
    /// mode, too.
    #[default]
    None,
    /// A pooler in transaction mode, such as `PgBouncer` with `pool_mode = transaction`: each transaction, and each statement
    /// outside of one, may run in another session.
    ///
    /// What is different then:
    ///
    /// * Sessions are told nothing when they begin that a pooler would refuse. What [`PoolOptions`](crate::PoolOptions) says
    ///   of statements and of idle transactions, each transaction is told with its `BEGIN`.
    /// * A statement that was cut off is not cancelled by its process id, which would be a stranger's: its connection rests
    ///   for up to 2 s, until the statement has ended, and is closed otherwise.
    /// * A statement that needs a session of its own is refused: see [`PoolerError`].
    /// * The pooler has to follow prepared statements, as `PgBouncer` does from 1.21 on with `max_prepared_statements` above
    ///   zero. Each pool finds that out by its first connection, and says so where it does not.
    /// * [`Session::pid`](crate::Session::pid) and its like are 0.
    Transaction,
}

/// What a statement needs of its session, beyond the transaction that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Listen,
    Lock,
    Setting,
    Prepared,
    Temporary,
    Cursor,
}

/// A statement needs a session of its own, and there is a [pooler](Pooler::Transaction) in between that would give its session
/// to somebody else. It was not sent.
///
/// Refused are `LISTEN` and `UNLISTEN`; the functions that lock or unlock for the session, such as `pg_advisory_lock`;
/// `SET` without `LOCAL`, `set_config(…, false)`, `RESET`, `DISCARD` and `LOAD`; `PREPARE` and `DEALLOCATE` by text; temporary
/// tables that are not dropped on commit, and cursors `WITH HOLD`. Most have a form that ends with the transaction. Each statement
/// of a raw text is looked at. Not seen is what a function of your own does inside.
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
                "an advisory lock of the session",
                "use one of the transaction, such as pg_advisory_xact_lock",
            ),
            Needs::Setting => ("a setting of the session", "use SET LOCAL in a transaction"),
            Needs::Prepared => ("a statement prepared by text", "leave preparing to the driver"),
            Needs::Temporary => ("a temporary table", "create it in a transaction, with ON COMMIT DROP"),
            Needs::Cursor => ("a cursor WITH HOLD", "read it within the transaction"),
        };
        let Self { pool, at, .. } = self;
        write!(
            f,
            "pool `{pool}`: {what} needs a session of its own, and the pooler in front of the server would give it to others \
             after the transaction: {instead}, or a pool of the direct address (asked for at {at})"
        )
    }
}

impl std::error::Error for PoolerError {}

impl From<PoolerError> for sqlx::Error {
    /// sqlx's `Executor` can only fail with sqlx's error; [`Error`](crate::Error) finds ours again inside.
    fn from(error: PoolerError) -> Self {
        Self::Configuration(Box::new(error))
    }
}

/// Its own text is what it looks for. A pooler that follows statements gives them names of its own on the server.
const PROBE: &str = r"select coalesce(bool_or(name not like 'sqlx\_s\_%'), false) from pg_prepared_statements where statement = $1";

/// Asks whether a pooler follows prepared statements: whether one that was prepared on a connection is known wherever that
/// connection's next transaction runs. By the names of statements, and not by trying: as long as nobody else is there, all
/// transactions run in one session.
pub(crate) async fn follows_statements(raw: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // Within a transaction, so that the statement is prepared where it is looked for, and forgotten there.
    raw.execute(sqlx::raw_sql("BEGIN")).await?;
    let follows = match sqlx::query(PROBE).bind(PROBE).fetch_one(&mut *raw).await {
        Ok(row) => row.try_get(0)?,
        // Somebody has left a statement of that name in the session: nobody follows them.
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
    if !follows {
        raw.clear_cached_statements().await?;
    }
    raw.execute(sqlx::raw_sql("ROLLBACK")).await?;
    Ok(follows)
}
