//! Does not compile: each line with `//~` has the named error.

use db_core::{Error, Pool, TxRetry, Tx, TxOptions};
use sqlx::{Acquire, PgConnection, PgPool, Postgres};

async fn of_sqlx(_: &mut PgConnection) {}
async fn of_a_pool(_: &PgPool) {}
async fn begins<'c>(_: impl Acquire<'c, Database = Postgres>) {}

#[derive(Debug)]
struct Mine;

pub async fn a_pool_by_value(pool: Pool) {
    sqlx::query("select 1").execute(pool).await.ok(); //~ error[E0277]: the trait bound `db_core::Pool: Executor<'_>` is not satisfied
}

pub async fn a_function_on_the_drivers_connection(tx: &mut Tx) {
    of_sqlx(tx).await; //~ error[E0308]: mismatched types: expected `&mut PgConnection`, found `&mut Tx`
}

pub async fn a_function_on_the_drivers_pool(pool: &Pool) {
    of_a_pool(pool).await; //~ error[E0308]: mismatched types: expected `&Pool<Postgres>`, found `&Pool`
}

pub async fn a_function_that_begins(tx: &mut Tx) {
    begins(tx).await; //~ error[E0277]: the trait bound `&mut Tx: sqlx::Acquire<'_>` is not satisfied
}

pub async fn a_begin_without_a_handle(pool: &Pool) {
    pool.begin().await.ok(); //~ error[E0599]: no method named `begin` found for reference `&db_core::Pool`
}

pub async fn a_retry_without_the_outer_closure(pool: &Pool) {
    pool.handle()
        .tx_retry(TxOptions::default(), TxRetry::default(), async |tx| { //~ error[E0593]: closure is expected to take 0 arguments
            sqlx::query("select 1").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await
        .ok();
}

pub async fn an_error_without_a_name(pool: &Pool) {
    let done = pool.handle().tx(async |tx| { //~ error[E0283]: type annotations needed: cannot infer type of the type parameter `E` declared on the method `tx`
        sqlx::query("select 1").execute(&mut *tx).await?;
        Ok(())
    });
    done.await.ok();
}

pub async fn an_error_that_ours_does_not_become(pool: &Pool) -> Result<(), Mine> {
    pool.handle().tx(async |_| Err(Mine)).await //~ error[E0277]: the trait bound `Mine: From<db_core::Error>` is not satisfied
}
