//! How long statements may take, and how long to pause between attempts.

use std::time::Duration;

use db_core::Backoff;
use tokio::time::timeout;

use crate::Error;

/// The longest time between two polls of a log that is followed. A lost notification delays its readers by at most this.
pub const POLL_FLOOR: Duration = Duration::from_secs(5);

/// How long one statement may take. The wait for a connection has the pool's own limit.
pub(crate) const STATEMENT_LIMIT: Duration = Duration::from_secs(30);

/// The longest pause between two attempts to store a batch.
pub(crate) const LONGEST_APPEND_PAUSE: Duration = Duration::from_secs(1);

/// Runs a statement within [`STATEMENT_LIMIT`].
pub(crate) async fn limited<T>(
    what: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(STATEMENT_LIMIT, statement).await {
        Ok(result) => result.map_err(Error::database(what)),
        Err(_) => Err(Error::TimedOut { what, seconds: STATEMENT_LIMIT.as_secs() }),
    }
}

/// The pauses between attempts, up to `longest`.
pub(crate) fn pauses(longest: Duration) -> Backoff {
    Backoff::new(Duration::from_millis(20), longest)
}
