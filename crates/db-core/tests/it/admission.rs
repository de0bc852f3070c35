//! The limit on waiting callers.

use std::time::Duration;

use db_core::{AcquireError, AcquirePhase, Conn, Error, Pool, PoolOptions};
use db_testkit::{TestDb, until};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, config};

/// A pool of two connections with this `max_waiting`.
fn pool(db: &TestDb, max_waiting: u32) -> Pool {
    let options =
        PoolOptions::named("admission").max(2).max_waiting(Some(max_waiting)).acquire_timeout(PATIENCE);
    Pool::new(&config(db), options)
}

async fn take(pool: &Pool) -> Conn {
    pool.handle().acquire().await.expect("a connection")
}

/// Starts another caller, and returns when it waits.
async fn wait(pool: &Pool) -> JoinHandle<Result<Conn, AcquireError>> {
    let before = pool.stats().waiting;
    let handle = pool.handle();
    let waiting = tokio::spawn(async move { handle.acquire().await });
    until("the caller waits", async || pool.stats().waiting > before).await;
    waiting
}

/// Acquires, and expects to be rejected immediately.
fn rejected(pool: &Pool) -> Error {
    let answer = pool.handle().acquire().now_or_never().expect("an answer at once");
    answer.map(drop).expect_err("max_waiting is reached").into()
}

#[db_testkit::test]
async fn a_caller_above_max_waiting_is_rejected_at_once_with_a_time_to_retry(db: TestDb) {
    let pool = pool(&db, 2);
    let held = [take(&pool).await, take(&pool).await];
    let waiting = [wait(&pool).await, wait(&pool).await];

    let error = rejected(&pool);

    let Error::Acquire(acquire) = &error else { panic!("{error}") };
    assert_eq!(acquire.phase(), AcquirePhase::Shed);
    assert!(error.is_transient());
    let retry_after = error.retry_after().expect("a time to wait");
    assert!((Duration::from_secs(1)..=Duration::from_secs(30)).contains(&retry_after), "{retry_after:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(
            "pool `admission`: rejected immediately: 2 of 2 in use and 2 already waiting (max_waiting reached)"
        ),
        "{text}"
    );
    assert_eq!((pool.stats().totals.shed, pool.stats().totals.timed_out), (1, 0));

    drop(held);
    for one in waiting {
        one.await.expect("no panic").expect("a waiting caller is served");
    }
    assert_eq!(pool.stats().totals.shed, 1, "no other caller is rejected");
}

#[db_testkit::test]
async fn a_caller_that_gives_up_makes_room_for_another(db: TestDb) {
    let pool = pool(&db, 1);
    let held = [take(&pool).await, take(&pool).await];
    let waiting = wait(&pool).await;
    rejected(&pool);

    waiting.abort();
    until("the queue is empty", async || pool.stats().waiting == 0).await;

    let waiting = wait(&pool).await;
    drop(held);
    waiting.await.expect("no panic").expect("a connection");
}

#[db_testkit::test]
async fn callers_for_whom_a_connection_is_dialled_do_not_count_as_waiting(db: TestDb) {
    let pool = pool(&db, 0);

    let handle = pool.handle();
    let (first, second) = tokio::join!(handle.acquire(), handle.acquire());

    let held = [first.expect("a connection"), second.expect("a connection")];
    rejected(&pool);
    drop(held);
    take(&pool).await;
}

#[db_testkit::test]
async fn max_waiting_can_be_changed_while_callers_wait(db: TestDb) {
    let pool = pool(&db, 0);
    let held = [take(&pool).await, take(&pool).await];
    rejected(&pool);

    pool.set_limits(pool.limits().max_waiting(None));
    let waiting = [wait(&pool).await, wait(&pool).await, wait(&pool).await];
    pool.set_limits(pool.limits().max_waiting(Some(1)));

    rejected(&pool);
    drop(held);
    for one in waiting {
        one.await.expect("no panic").expect("a lower limit rejects no caller that waits already");
    }
}
