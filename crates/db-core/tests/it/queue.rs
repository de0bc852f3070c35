//! The order in which callers get connections.

use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use db_core::{CloseReason, Pool, PoolOptions};
use db_testkit::{Proxy, TestDb, poll_then_drop, until};
use futures_util::FutureExt;
use futures_util::future::join_all;

use crate::support::{PATIENCE, config, patient_pool, take};

#[db_testkit::test]
async fn waiting_callers_are_served_first_come_first_served(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let held = take(&pool, 1).await;
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for n in 0..20 {
        let (handle, served) = (pool.handle(), Arc::clone(&served));
        waiting.push(tokio::spawn(async move {
            let conn = handle.acquire().await.expect("a connection");
            served.lock().expect("no panic").push(n);
            drop(conn);
        }));
        until("the caller waits", async || pool.stats().waiting == n + 1).await;
    }

    drop(held);

    for waiter in waiting {
        waiter.await.expect("no panic");
    }
    assert_eq!(*served.lock().expect("no panic"), (0..20).collect::<Vec<u32>>());
}

#[db_testkit::test]
async fn a_returned_connection_goes_to_a_waiting_caller_and_not_to_a_new_one(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let held = take(&pool, 1).await;
    let handle = pool.handle();
    let mut first = Box::pin(handle.acquire());
    assert!((&mut first).now_or_never().is_none(), "the caller waits");

    drop(held);

    assert!(handle.acquire().now_or_never().is_none(), "the connection was handed to the first caller");
    first.await.expect("a connection");
}

#[db_testkit::test]
async fn a_dropped_acquire_leaves_the_queue(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let held = take(&pool, 1).await;
    let handle = pool.handle();
    let mut first = Box::pin(handle.acquire());
    let mut second = Box::pin(handle.acquire());
    assert!(
        (&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none(),
        "both callers wait"
    );

    drop(first);

    assert_eq!(pool.stats().waiting, 1);
    drop(held);
    second.await.expect("a connection");
}

#[db_testkit::test]
async fn a_connection_handed_to_a_dropped_acquire_goes_to_the_next_caller(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let held = take(&pool, 1).await;
    let pid = held[0].pid();
    let handle = pool.handle();
    let mut first = Box::pin(handle.acquire());
    let mut second = Box::pin(handle.acquire());
    assert!(
        (&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none(),
        "both callers wait"
    );

    drop(held);
    // The connection was handed to the first caller, which is dropped without being polled.
    drop(first);

    assert_eq!(second.await.expect("a connection").pid(), pid);
    assert_eq!((pool.stats().open, pool.stats().totals.dialled), (1, 1));
}

#[db_testkit::test]
async fn acquires_dropped_at_any_moment_lose_no_connection(db: TestDb) {
    const MAX: usize = 2;
    for ping_after in [Duration::from_hours(1), Duration::ZERO] {
        let options = PoolOptions::api().max(2).acquire_timeout(PATIENCE).ping_after(ping_after);
        let pool = Pool::new(&config(&db), options);
        for polls in 0..50 {
            // With few polls, the callers are dropped just when the connections are returned.
            for _ in 0..if polls < 3 { 60 } else { 3 } {
                let held = take(&pool, MAX).await;
                let mut callers: Vec<_> = (0..3)
                    .map(|_| {
                        let handle = pool.handle();
                        Box::pin(async move { handle.acquire().await.map(drop) })
                    })
                    .collect();
                for caller in &mut callers {
                    assert!(caller.now_or_never().is_none(), "the caller waits");
                }
                let both = Arc::new(Barrier::new(2));
                let start = Arc::clone(&both);
                let giving = tokio::task::spawn_blocking(move || {
                    start.wait();
                    drop(held);
                });
                both.wait();
                join_all(callers.into_iter().map(|caller| poll_then_drop(caller, polls))).await;
                giving.await.expect("no panic");
            }
            assert_eq!(take(&pool, MAX).await.len(), MAX, "after {polls} polls");
        }
        until("the pool is quiet", async || {
            let stats = pool.stats();
            (stats.in_use, stats.repairing, stats.dialling, stats.waiting) == (0, 0, 0, 0)
        })
        .await;
        assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0);
        assert!(
            db.sessions().await.expect("the sessions").len() <= MAX + 1,
            "the pool's connections and the control connection"
        );
    }
}

#[db_testkit::test]
async fn the_most_recently_returned_connection_is_taken_first(db: TestDb) {
    let pool = patient_pool(&db, 3);
    let mut given_back = Vec::new();
    for conn in take(&pool, 3).await {
        given_back.push(conn.pid());
    }

    let taken: Vec<_> = take(&pool, 3).await.iter().map(|conn| conn.pid()).collect();

    given_back.reverse();
    assert_eq!(taken, given_back);
}

#[db_testkit::test]
async fn the_counts_match_the_connections(db: TestDb) {
    let pool = patient_pool(&db, 3);
    let before = pool.stats();
    assert_eq!((before.max, before.open, before.totals.acquired), (3, 0, 0));
    let mut held = take(&pool, 3).await;
    held.pop();

    let stats = pool.stats();

    assert_eq!((stats.open, stats.in_use, stats.idle), (3, 2, 1));
    assert_eq!((stats.repairing, stats.dialling, stats.waiting), (0, 0, 0));
    assert_eq!((stats.totals.acquired, stats.totals.dialled, stats.totals.timed_out), (3, 3, 0));
}

/// So a count that grows shows that the server answers.
#[db_testkit::test]
async fn a_connection_that_comes_back_with_its_answers_is_counted_and_a_lost_one_is_not(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = db_core::Config::from_url(&proxy.url()).expect("the proxy's address");
    let pool = Pool::new(&config, PoolOptions::api().max(1).acquire_timeout(PATIENCE));
    for _ in 0..3 {
        sqlx::query("select 1").execute(pool.handle()).await.expect("an answer");
    }
    until("all are back", async || pool.stats().idle == 1).await;
    assert_eq!(pool.stats().totals.returned, 3);

    let mut conn = pool.handle().acquire().await.expect("a connection");
    proxy.reset();
    sqlx::query("select 1").execute(&mut *conn).await.expect_err("its link is cut");
    drop(conn);
    until("it is lost", async || pool.stats().totals.closed.of(CloseReason::Lost) == 1).await;

    assert_eq!(pool.stats().totals.returned, 3);
}

#[db_testkit::test]
async fn the_wait_in_the_queue_and_the_time_to_connect_are_counted_apart(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let each_way = Duration::from_millis(30);
    proxy.latency(each_way);
    let config = db_core::Config::from_url(&proxy.url()).expect("the proxy's address");
    let options = PoolOptions::api().max(1).acquire_timeout(PATIENCE);
    let pool = Pool::new(&config, options);
    let held = take(&pool, 1).await;
    let dialled = pool.stats().totals;
    assert!(dialled.dialling > 2 * each_way, "{dialled:?}");
    let handle = pool.handle();
    let mut waiter = Box::pin(handle.acquire());
    assert!((&mut waiter).now_or_never().is_none(), "the caller waits");
    let wait = Duration::from_millis(200);
    until("the connection was held for a while", async || pool.holders()[0].held > wait + dialled.dialling)
        .await;

    drop(held);
    waiter.await.expect("a connection");

    let totals = pool.stats().totals;
    assert_eq!(totals.queued, dialled.queued + 1);
    assert!(totals.queue_wait >= dialled.queue_wait + wait, "{totals:?}");
    assert_eq!((totals.dialled, totals.dialling), (1, dialled.dialling), "nothing was dialled for it");
    let idle = pool.handle().acquire().await;
    assert!(idle.is_ok());
    let after = pool.stats().totals;
    assert_eq!((after.queued, after.queue_wait), (totals.queued, totals.queue_wait), "no wait, no queue");
}
