//! What the tests share.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_testkit::TestDb;
use futures_util::future::poll_fn;
use std::task::Poll;

/// No wait in these tests is longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

/// A pool of so many connections, which waits for half a second.
pub(crate) fn pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = Duration::from_millis(500);
    Pool::new(
        &config(db),
        PoolOptions { name: "test".to_owned(), max, acquire_timeout, ..PoolOptions::api() },
    )
}

/// The same, with time enough for a pool whose connections are being replaced.
pub(crate) fn patient_pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = PATIENCE;
    Pool::new(
        &config(db),
        PoolOptions { name: "test".to_owned(), max, acquire_timeout, ..PoolOptions::api() },
    )
}

/// Polls a future so many times, at most, and drops it. Says whether it was done.
pub(crate) async fn poll_and_drop(future: impl Future, polls: usize) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        // Each wake-up of the future's own polls it again, as in a real runtime.
        future.as_mut().poll(cx).map(|_| true)
    })
    .await
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// How many sessions of this database, but for the asking one, are in a transaction.
pub(crate) async fn open_transactions(db: &TestDb) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and state like 'idle in transaction%'",
    )
    .fetch_one(&db.pool())
    .await
    .expect("the server's activity")
}
