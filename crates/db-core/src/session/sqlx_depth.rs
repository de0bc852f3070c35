//! The number of transactions that sqlx takes to be open on a connection. It decides whether `begin` of sqlx sends `BEGIN` or
//! makes a savepoint. The number is private, so it is set by calls whose other effects are known.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

/// Makes it one, in a transaction that was begun past sqlx, by a savepoint that sqlx takes to be that transaction. Dropped
/// halfway, the savepoint may be there, and the number is as it was.
pub(crate) async fn raise(raw: &mut PgConnection) -> Result<(), sqlx::Error> {
    let begun = raw.begin_with("SAVEPOINT db_core_lent").await?;
    // Its `Drop` would roll all of it back.
    std::mem::forget(begun);
    Ok(())
}

/// Makes it zero, outside of a transaction. Fails where it was more than one.
///
/// A `begin_with` inside of what sqlx takes to be a transaction is refused before anything is sent, and its `Drop` queues a
/// `ROLLBACK` and counts one less. The server logs a warning for a `ROLLBACK` without a transaction, so there is one.
pub(crate) async fn lower(raw: &mut PgConnection) -> Result<(), sqlx::Error> {
    raw.execute(sqlx::raw_sql("BEGIN")).await?;
    if raw.begin_with("BEGIN").await.is_ok() {
        return Err(sqlx::Error::BeginFailed);
    }
    // Sends what was queued.
    raw.ping().await?;
    if raw.is_in_transaction() { Err(sqlx::Error::BeginFailed) } else { Ok(()) }
}
