//! Does not compile: each line with `//~` has the named error.

use db_core::{Error, Pool, Tx};

pub async fn a_commit_inside_of_the_closure(pool: &Pool) -> Result<(), Error> {
    pool.handle().tx(async |tx| tx.commit().await).await //~ error[E0507]: cannot move out of `*tx`
}

pub async fn the_transaction_while_its_savepoint_is_open(tx: &mut Tx) -> Result<(), Error> {
    let part = tx.savepoint().await?;
    sqlx::query("select 1").execute(&mut *tx).await?; //~ error[E0499]: cannot borrow `*tx` as mutable
    part.release().await
}
