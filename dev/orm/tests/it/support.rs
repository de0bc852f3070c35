//! What the tests share.

use std::time::Duration;

use db_core::{Config, Handle, Pool, PoolOptions};
use db_testkit::TestDb;
use orm::{blog, cakes};

/// A pool with at most `max` connections.
pub(crate) fn pool(db: &TestDb, max: u32) -> Pool {
    pool_with(db, PoolOptions::api().max(max))
}

pub(crate) fn pool_with(db: &TestDb, options: PoolOptions) -> Pool {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    Pool::new(&config, options.name("test").acquire_timeout(Duration::from_secs(10)))
}

/// A pool with at most `max` connections, and the tables of users and posts.
pub(crate) async fn blog(db: &TestDb, max: u32) -> Pool {
    let pool = pool(db, max);
    blog::create_tables(&pool.handle().orm()).await.expect("tables");
    pool
}

/// A pool with at most `max` connections, and the tables of cakes.
pub(crate) async fn bakery(db: &TestDb, max: u32) -> Pool {
    let pool = pool(db, max);
    cakes::create_tables(&pool.handle().orm()).await.expect("tables");
    pool
}

/// How many rows a table has, asked past `SeaORM`.
pub(crate) async fn count(handle: Handle, table: &str) -> i64 {
    let sql = format!("select count(*) from \"{table}\"");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(handle).await.expect("a count")
}
