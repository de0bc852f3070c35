//! Compiles: the correct versions of the mistakes beside this file.

use db_core::{Error, Pool, TxRetry, Session, TxOptions};
use sqlx::PgConnection;

async fn of_sqlx(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select 1").execute(conn).await?;
    Ok(())
}

async fn of_ours(db: &mut Session) -> Result<(), Error> {
    of_sqlx(db.as_sqlx_without_reset().await?).await?;
    Ok(())
}

pub async fn right(pool: &Pool) -> Result<(), Error> {
    sqlx::query("select 1").execute(pool).await?;
    pool.handle()
        .tx_retry(TxOptions::default(), TxRetry::default(), || async |tx| {
            sqlx::query("select 1").execute(&mut **tx).await?;
            of_ours(tx).await
        })
        .await
}
