//! `try_acquire`, a handle's own acquire timeout, and eviction.

use std::time::{Duration, Instant};

use db_core::{CloseReason, Pool, PoolOptions};
use db_testkit::{Proxy, TestDb, until};

use crate::support::{PATIENCE, config, take, until_repaired};

fn pool(db: &TestDb, max: u32) -> Pool {
    Pool::new(&config(db), PoolOptions::named("taking").max(max).acquire_timeout(PATIENCE))
}

#[db_testkit::test]
async fn try_acquire_takes_an_idle_connection_and_neither_dials_nor_waits(db: TestDb) {
    let pool = pool(&db, 1);
    assert!(pool.handle().try_acquire().await.is_none(), "no connection is open yet");
    assert_eq!((pool.stats().dialling, pool.stats().totals.dialled), (0, 0));

    drop(take(&pool, 1).await);
    let conn = pool.handle().try_acquire().await.expect("the idle connection");
    assert_eq!(pool.holders()[0].pid, conn.pid());
    assert!(pool.handle().try_acquire().await.is_none(), "the connection is in use");
    assert_eq!(pool.stats().waiting, 0);
    drop(conn);

    pool.close(PATIENCE).await;
    assert!(pool.handle().try_acquire().await.is_none(), "the pool is closed");
}

#[db_testkit::test]
async fn try_acquire_hands_out_no_dead_connection(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = db_core::Config::from_url(&proxy.url()).expect("an address");
    let options = PoolOptions::named("taking").max(3).acquire_timeout(PATIENCE).ping_after(Duration::ZERO);
    let pool = Pool::new(&config, options);
    drop(take(&pool, 3).await);
    assert!(pool.handle().try_acquire().await.is_some(), "a connection that answers");
    until("the connection is returned", async || pool.stats().idle == 3).await;

    proxy.reset();

    assert!(pool.handle().try_acquire().await.is_none(), "all links are lost");
}

#[db_testkit::test]
async fn a_handles_acquire_timeout_replaces_that_of_the_pool(db: TestDb) {
    let pool = pool(&db, 1);
    let held = take(&pool, 1).await;
    let begun = Instant::now();

    let handle = pool.handle().acquire_timeout(Duration::from_millis(20));
    let error = handle.acquire().await.expect_err("the connection is in use");
    assert!(error.waited() >= Duration::from_millis(20) && error.waited() < PATIENCE / 2, "{error}");
    let one = sqlx::query("select 1").execute(handle).await.expect_err("the connection is in use");
    assert!(matches!(db_core::Error::from(one), db_core::Error::Acquire(_)));
    assert!(begun.elapsed() < PATIENCE / 2);

    let patient = tokio::spawn(pool.handle().acquire());
    until("the caller waits", async || pool.stats().waiting == 1).await;
    drop(held);
    patient.await.expect("no panic").expect("a connection");
}

#[db_testkit::test]
async fn evict_replaces_idle_connections_at_once_and_those_in_use_when_they_are_returned(db: TestDb) {
    let pool = pool(&db, 3);
    let mut conns = take(&pool, 3).await;
    let old: Vec<i32> = conns.iter().map(|conn| conn.pid()).collect();
    let busy = conns.pop().expect("three");
    drop(conns);

    pool.evict();

    until("the idle connections are closed", async || pool.stats().open == 1).await;
    let mut busy = busy;
    let answer: i32 = sqlx::query_scalar("select 1").fetch_one(&mut busy).await.expect("an answer");
    assert_eq!(answer, 1);
    drop(busy);
    until("the last connection is closed", async || pool.stats().open == 0).await;

    let new = take(&pool, 3).await;
    assert!(new.iter().all(|conn| !old.contains(&conn.pid())), "{old:?}");
    drop(new);
    until_repaired(&pool).await;
    assert_eq!(
        (pool.stats().idle, pool.stats().totals.closed.of(CloseReason::Lost)),
        (3, 0),
        "{:?}",
        pool.stats()
    );
}
