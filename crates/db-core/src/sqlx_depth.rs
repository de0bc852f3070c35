//! sqlx's count of open transactions on a connection, by which its `begin` decides between `BEGIN` and a savepoint. The count is
//! private, so it is changed by calls whose other effects are known.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

/// Raises the count to one inside a transaction that sqlx does not know, by a savepoint that sqlx takes for that transaction. If
/// the future is dropped halfway, the savepoint may exist, and the count is unchanged.
pub(crate) async fn raise(raw: &mut PgConnection) -> Result<(), sqlx::Error> {
    let begun = raw.begin_with("SAVEPOINT db_core_lent").await?;
    // Its `Drop` would roll back the savepoint.
    std::mem::forget(begun);
    Ok(())
}

/// Lowers the count to zero outside a transaction. Fails if the count was more than one.
///
/// A `begin_with` in what sqlx takes for a transaction is refused before anything is sent, and its `Drop` queues a
/// `ROLLBACK` and lowers the count. The server warns about a `ROLLBACK` without a transaction, so a `BEGIN` comes first.
pub(crate) async fn lower(raw: &mut PgConnection) -> Result<(), sqlx::Error> {
    raw.execute(sqlx::raw_sql("BEGIN")).await?;
    if raw.begin_with("BEGIN").await.is_ok() {
        return Err(sqlx::Error::BeginFailed);
    }
    // The ping sends the queued `ROLLBACK`.
    raw.ping().await?;
    if raw.is_in_transaction() { Err(sqlx::Error::BeginFailed) } else { Ok(()) }
}
