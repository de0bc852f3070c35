use db_testkit::{PgBouncer, TestDb};
use sqlx::{ConnectOptions, Connection, PgConnection};

/// The code under test: reads as one tenant.
async fn orders(connection: &mut PgConnection, tenant: &str) -> Result<i64, sqlx::Error> {
    let mut tx = connection.begin().await?;
    // With `false`, the setting would stay in the server's session, which the pooler lends to the next client.
    sqlx::query("select set_config('app.tenant', $1, true)").bind(tenant).execute(&mut *tx).await?;
    let orders =
        sqlx::query_scalar("select count(*) from purchase where tenant = current_setting('app.tenant')")
            .fetch_one(&mut *tx)
            .await?;
    tx.commit().await?;
    Ok(orders)
}

#[db_testkit::test]
async fn a_tenant_does_not_reach_the_next_client(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
    sqlx::query("create table purchase as select 'one' as tenant").execute(&db.pool()).await?;
    let pooler = PgBouncer::builder().default_pool_size(1).start(&db).await?;
    let (mut one, mut next) = (pooler.options().connect().await?, pooler.options().connect().await?);

    assert_eq!(orders(&mut one, "one").await?, 1);

    let tenant: Option<String> = sqlx::query_scalar("select nullif(current_setting('app.tenant', true), '')")
        .fetch_one(&mut next)
        .await?;
    assert_eq!(tenant, None);
    Ok(())
}
