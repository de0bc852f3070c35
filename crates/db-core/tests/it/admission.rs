//! Who may wait, and who is turned away.

use std::time::Duration;

use db_core::{AcquireError, AcquirePhase, Conn, Error, Pool, PoolOptions};
use db_testkit::{TestDb, until};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, config};

/// A pool of two, in which so many may wait.
fn pool(db: &TestDb, max_waiting: u32) -> Pool {
    let options =
        PoolOptions::named("admission").max(2).max_waiting(Some(max_waiting)).acquire_timeout(PATIENCE);
    Pool::new(&config(db), options)
}

async fn take(pool: &Pool) -> Conn {
    pool.handle().acquire().await.expect("a connection")
}

/// Has another one wait, and returns when it does.
async fn wait(pool: &Pool) -> JoinHandle<Result<Conn, AcquireError>> {
    let before = pool.stats().waiting;
    let handle = pool.handle();
    let waiting = tokio::spawn(async move { handle.acquire().await });
    until("it waits", async || pool.stats().waiting > before).await;
    waiting
}

/// Asks, and is told something at once.
fn turned_away(pool: &Pool) -> Error {
    let answer = pool.handle().acquire().now_or_never().expect("an answer at once");
    answer.map(drop).expect_err("too many wait").into()
}

#[db_testkit::test]
async fn who_would_be_one_too_many_is_turned_away_at_once_and_told_when_to_come_again(db: TestDb) {
    let pool = pool(&db, 2);
    let held = [take(&pool).await, take(&pool).await];
    let waiting = [wait(&pool).await, wait(&pool).await];

    let error = turned_away(&pool);

    let Error::Acquire(acquire) = &error else { panic!("{error}") };
    assert_eq!(acquire.phase(), AcquirePhase::Shed);
    assert!(error.is_transient());
    let retry_after = error.retry_after().expect("waiting mends it");
    assert!((Duration::from_secs(1)..=Duration::from_secs(30)).contains(&retry_after), "{retry_after:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(
            "pool `admission`: turned away at once, 2 of 2 in use and 2 waiting, which is as many as may"
        ),
        "{text}"
    );
    assert_eq!((pool.stats().totals.shed, pool.stats().totals.timed_out), (1, 0));

    drop(held);
    for one in waiting {
        one.await.expect("no panic").expect("who was let in is served");
    }
    assert_eq!(pool.stats().totals.shed, 1, "nobody else");
}

#[db_testkit::test]
async fn who_goes_away_leaves_the_place_to_another(db: TestDb) {
    let pool = pool(&db, 1);
    let held = [take(&pool).await, take(&pool).await];
    let waiting = wait(&pool).await;
    turned_away(&pool);

    waiting.abort();
    until("the place is free", async || pool.stats().waiting == 0).await;

    let waiting = wait(&pool).await;
    drop(held);
    waiting.await.expect("no panic").expect("its turn");
}

#[db_testkit::test]
async fn callers_for_whom_a_connection_is_made_do_not_count_as_waiting(db: TestDb) {
    let pool = pool(&db, 0);

    let handle = pool.handle();
    let (first, second) = tokio::join!(handle.acquire(), handle.acquire());

    let held = [first.expect("it is made"), second.expect("it is made")];
    turned_away(&pool);
    drop(held);
    take(&pool).await;
}

#[db_testkit::test]
async fn how_many_may_wait_can_be_changed_while_they_do(db: TestDb) {
    let pool = pool(&db, 0);
    let held = [take(&pool).await, take(&pool).await];
    turned_away(&pool);

    pool.set_limits(pool.limits().max_waiting(None));
    let waiting = [wait(&pool).await, wait(&pool).await, wait(&pool).await];
    pool.set_limits(pool.limits().max_waiting(Some(1)));

    turned_away(&pool);
    drop(held);
    for one in waiting {
        one.await.expect("no panic").expect("a lower limit sends nobody away who waits already");
    }
}
