use db_testkit::{Proxy, TestDb};
use sqlx::PgPool;

/// The code under test: pays once, also if it has to try again.
async fn pay(pool: &PgPool, order: i64) -> Result<(), sqlx::Error> {
    for _ in 0..3 {
        match try_to_pay(pool, order).await {
            Err(sqlx::Error::Io(_)) => {}
            done => return done,
        }
    }
    try_to_pay(pool, order).await
}

async fn try_to_pay(pool: &PgPool, order: i64) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    // Without the conflict, a payment whose answer was lost would be made twice, or refused the second time.
    sqlx::query("insert into payment values ($1) on conflict do nothing")
        .bind(order)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

#[db_testkit::test]
async fn a_payment_whose_answer_is_lost_is_made_once(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
    sqlx::query("create table payment (of bigint primary key)").execute(&db.pool()).await?;
    let proxy = Proxy::start(&db)?;
    let pool = PgPool::connect(&proxy.url()).await?;

    proxy.cut_answer_to("COMMIT");
    pay(&pool, 7).await?;

    let paid: i64 = sqlx::query_scalar("select count(*) from payment").fetch_one(&db.pool()).await?;
    assert_eq!(paid, 1);
    Ok(())
}
