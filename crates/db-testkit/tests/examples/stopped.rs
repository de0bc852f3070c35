use db_testkit::{Stop, TestDb};
use sqlx::PgPool;

/// The code under test: an order that was confirmed is kept.
async fn confirm(pool: &PgPool, order: i64) -> Result<(), sqlx::Error> {
    // An unlogged table, or `synchronous_commit = off`, would lose the order with the server.
    sqlx::query("create table if not exists confirmed (id bigint)").execute(pool).await?;
    sqlx::query("insert into confirmed values ($1)").bind(order).execute(pool).await?;
    Ok(())
}

#[db_testkit::test(server = "throwaway")]
async fn a_confirmed_order_survives_the_death_of_the_server(
    db: TestDb,
) -> Result<(), Box<dyn std::error::Error>> {
    confirm(&db.pool(), 7).await?;

    db.test_server().restart(Stop::Kill).await?;

    let kept: i64 = sqlx::query_scalar("select id from confirmed").fetch_one(&db.pool()).await?;
    assert_eq!(kept, 7);
    Ok(())
}
