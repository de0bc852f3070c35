//! Limits that are changed while the pool runs.

use std::time::Duration;

use db_core::{Pool, PoolOptions};
use db_testkit::{TestDb, until};

use crate::support::{of_connections, patient_pool, take};

#[db_testkit::test]
async fn a_higher_limit_serves_waiting_callers(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let _held = take(&pool, 1).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let handle = pool.handle();
            tokio::spawn(async move { handle.acquire().await.expect("a connection") })
        })
        .collect();
    until("both callers wait", async || pool.stats().waiting == 2).await;

    pool.set_limits(pool.limits().max(3));
    let stats = pool.stats();
    assert_eq!(stats.dialling + stats.open, 3, "at once");

    let mut let_in = Vec::new();
    for waiter in waiting {
        let_in.push(waiter.await.expect("no panic"));
    }
    assert_eq!((pool.stats().in_use, pool.stats().max), (3, 3));
}

#[db_testkit::test]
async fn a_lower_limit_closes_idle_connections(db: TestDb) {
    let pool = patient_pool(&db, 4);
    drop(take(&pool, 4).await);
    assert_eq!(pool.stats().idle, 4);

    pool.set_limits(pool.limits().max(1));

    assert_eq!(pool.stats().idle, 1, "at once");
    db.until_sessions("one session is left", |all| of_connections(all) == 1).await;
    assert_eq!(take(&pool, 1).await.len(), 1);
}

#[db_testkit::test]
async fn a_lower_limit_closes_connections_as_they_come_back(db: TestDb) {
    let pool = patient_pool(&db, 3);
    let held = take(&pool, 3).await;

    pool.set_limits(pool.limits().max(1));
    assert_eq!(pool.stats().in_use, 3, "connections in use are kept");
    drop(held);

    db.until_sessions("one session is left", |all| of_connections(all) == 1).await;
    until("the connection is idle", async || (pool.stats().open, pool.stats().idle) == (1, 1)).await;
}

#[db_testkit::test]
async fn no_caller_is_served_above_a_lower_limit(db: TestDb) {
    let pool = patient_pool(&db, 2);
    let mut held = take(&pool, 2).await;
    pool.set_limits(pool.limits().max(1));
    let handle = pool.handle();
    let waiter = tokio::spawn(async move { handle.acquire().await.expect("a connection").pid() });
    until("the caller waits", async || pool.stats().waiting == 1).await;

    drop(held.pop());
    db.until_sessions("one session is left", |all| of_connections(all) == 1).await;
    assert_eq!(pool.stats().waiting, 1, "another connection is still in use");
    drop(held.pop());

    waiter.await.expect("no panic");
}

#[db_testkit::test]
async fn a_higher_min_idle_dials_at_once(db: TestDb) {
    // The keeper runs once a second.
    let pool = patient_pool(&db, 5);
    until("no connection is open", async || pool.stats().open == 0).await;

    pool.set_limits(pool.limits().min_idle(3));

    assert_eq!(pool.stats().dialling + pool.stats().open, 3, "at once");
    db.until_sessions("three sessions", |all| of_connections(all) == 3).await;
}

#[db_testkit::test]
async fn a_lower_max_idle_closes_idle_connections(db: TestDb) {
    let pool = patient_pool(&db, 4);
    drop(take(&pool, 4).await);

    pool.set_limits(pool.limits().max_idle(Some(2)));

    assert_eq!(pool.stats().idle, 2, "at once");
    db.until_sessions("two sessions are left", |all| of_connections(all) == 2).await;
    let limits = pool.limits();
    assert_eq!((limits.max, limits.max_idle, limits.min_idle, limits.max_waiting), (4, Some(2), 0, None));
}

#[db_testkit::test]
async fn a_pool_begins_with_the_limits_of_its_options(db: TestDb) {
    let options = PoolOptions::api().max(7).max_idle(Some(3)).min_idle(1);
    let pool = Pool::new(&crate::support::config(&db), options);

    let limits = pool.limits();
    assert_eq!((limits.max, limits.max_idle, limits.min_idle, limits.max_waiting), (7, Some(3), 1, None));
    assert!(pool.close(Duration::from_secs(10)).await.is_clean());
}
