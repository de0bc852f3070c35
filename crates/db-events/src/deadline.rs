//! Running a statement within the limit.

use tokio::time::timeout;

use crate::Error;
use crate::limits::STATEMENT_LIMIT;

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
