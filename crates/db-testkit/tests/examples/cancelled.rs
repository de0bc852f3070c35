use db_testkit::{TestDb, poll_then_drop};
use sqlx::PgPool;

/// The code under test: moves one piece from the store to the shop.
async fn deliver(pool: &PgPool) -> Result<(), sqlx::Error> {
    // Without the transaction, a request that is dropped between the statements would lose the piece.
    let mut tx = pool.begin().await?;
    sqlx::query("update stock set pieces = pieces - 1 where place = 'store'").execute(&mut *tx).await?;
    sqlx::query("update stock set pieces = pieces + 1 where place = 'shop'").execute(&mut *tx).await?;
    tx.commit().await
}

#[db_testkit::test]
async fn a_delivery_that_is_dropped_anywhere_loses_no_piece(db: TestDb) -> Result<(), sqlx::Error> {
    sqlx::query("create table stock as values ('store', 1000), ('shop', 0)").execute(&db.pool()).await?;
    sqlx::query("alter table stock rename column1 to place").execute(&db.pool()).await?;
    sqlx::query("alter table stock rename column2 to pieces").execute(&db.pool()).await?;
    let pool = PgPool::connect(&db.url()).await?;

    for polls in 0.. {
        let delivered = poll_then_drop(deliver(&pool), polls).await.transpose()?;

        let pieces: i64 = sqlx::query_scalar("select sum(pieces) from stock").fetch_one(&db.pool()).await?;
        assert_eq!(pieces, 1000, "after {polls} polls");
        if delivered.is_some() {
            break;
        }
    }
    Ok(())
}
