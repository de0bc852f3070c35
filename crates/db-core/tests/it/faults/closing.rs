//! Closing a pool during faults.

use std::time::{Duration, Instant};

use db_core::{AcquirePhase, Class, Error, Pool};
use db_testkit::{Proxy, TestDb, until};
use tokio::task::AbortHandle;

use super::panics;
use super::stage::{Gate, HANGS, SLACK, ends, fill, options, stage, until_control, until_quiet};

/// More time than the work needs.
const AMPLE: Duration = Duration::from_secs(15);

/// Waits until the pool refuses callers, and asserts that it does so with `Closed`.
async fn until_refusing(pool: &Pool) {
    until("the pool is closed", async || match pool.handle().acquire().await {
        Ok(_) => false,
        Err(error) => {
            assert!(error.is_closed(), "{error}");
            true
        }
    })
    .await;
}

#[db_testkit::test]
async fn a_statement_that_does_not_end_is_cancelled_and_its_call_site_reported(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(2));
    fill(&pool).await;
    let sleep =
        |handle: db_core::Handle| async move { sqlx::query("select pg_sleep(60)").execute(handle).await };
    // Opens the control connection: without it, the session would be ended half a second after the cancel.
    let abandoned = tokio::spawn(sleep(pool.handle()));
    db.until_sessions("the statement runs", |all| all.iter().any(db_testkit::Session::is_sleeping)).await;
    abandoned.abort();
    until("the statement is cancelled", async || pool.stats().totals.repaired == 1).await;
    let (line, handle) = (line!(), pool.handle());
    let statement = tokio::spawn(sleep(handle));
    db.until_sessions("the statement runs", |all| all.iter().any(db_testkit::Session::is_sleeping)).await;
    let begun = Instant::now();

    let deadline = Duration::from_secs(4);
    let closed = ends(pool.close(deadline)).await;

    assert!(begun.elapsed() < deadline, "{:?}", begun.elapsed());
    assert!(closed.in_time && !closed.is_clean(), "{closed:?}");
    let [holder] = &closed.aborted[..] else { panic!("{closed:?}") };
    assert_eq!(holder.at.to_string(), format!("{}:{line}", file!()));
    assert!(holder.to_string().contains("select pg_sleep"), "{holder}");
    let error = Error::from(statement.await.expect("no panic").expect_err("the statement was cancelled"));
    assert_eq!((error.class(), error.sqlstate().as_deref()), (Class::TimedOut, Some("57014")), "{error:?}");
    db.until_sessions("no session is left", <[_]>::is_empty).await;
    panics::assert_none();
}

/// Closes a pool with a running statement and an idle connection over a silent link.
async fn closes_in_time_despite(db: &TestDb, fault: fn(&Proxy)) {
    let (proxy, pool) = stage(db, options(2));
    fill(&pool).await;
    let gate = Gate::shut(db).await;
    let handle = pool.handle();
    let statement = tokio::spawn(async move { sqlx::query(Gate::WAIT).execute(handle).await });
    gate.until_waiting(1).await;
    fault(&proxy);
    let begun = Instant::now();

    let deadline = Duration::from_secs(1);
    let closed = ends(pool.close(deadline)).await;

    let took = begun.elapsed();
    assert!(took < deadline * 2, "{took:?}");
    assert!(!closed.in_time && closed.aborted.len() == 1, "{closed:?}");
    // The running statement still ends, and `close` can be called again.
    statement.abort();
    gate.open().await;
    proxy.heal();
    assert!(ends(pool.close(AMPLE)).await.is_clean());
    until_quiet(&pool).await;
    assert_eq!(pool.stats().open, 0);
    panics::assert_none();
}

#[db_testkit::test]
async fn in_a_black_hole_a_pool_closes_within_its_deadline(db: TestDb) {
    closes_in_time_despite(&db, Proxy::black_hole).await;
}

#[db_testkit::test]
async fn with_a_frozen_server_a_pool_closes_within_its_deadline(db: TestDb) {
    closes_in_time_despite(&db, Proxy::freeze).await;
}

/// A statement of the pool that waits, and a link that freezes meanwhile. The gate is shut for as long as it lives.
async fn frozen<'a>(db: &'a TestDb, proxy: &Proxy, pool: &Pool) -> (Gate<'a>, AbortHandle) {
    let gate = Gate::shut(db).await;
    let handle = pool.handle();
    let statement = tokio::spawn(async move { sqlx::query(Gate::WAIT).execute(handle).await });
    gate.until_waiting(1).await;
    until_control(db).await;
    proxy.freeze_open();
    (gate, statement.abort_handle())
}

#[db_testkit::test]
async fn a_statement_whose_link_froze_does_not_outlive_its_pool(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    let (_gate, statement) = frozen(&db, &proxy, &pool).await;

    let closed = ends(pool.close(Duration::from_secs(3))).await;

    // The control connection is opened anew and bypasses the frozen link.
    assert_eq!(closed.aborted.len(), 1, "{closed:?}");
    db.until_quiet().await;
    db.until_sessions("no session is left", <[_]>::is_empty).await;
    statement.abort();
}

#[db_testkit::test]
async fn a_statement_whose_link_froze_ends_when_its_server_can_be_reached_again(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1).statement_timeout(HANGS * 2));
    let (_gate, statement) = frozen(&db, &proxy, &pool).await;
    proxy.lead_to("postgres://127.0.0.1:1/nowhere").expect("an address");

    let closed = ends(pool.close(Duration::from_millis(400))).await;

    assert!(!closed.in_time && closed.aborted.len() == 1, "{closed:?}");
    let dials = proxy.accepted();
    until("the pool has tried to end the session again", async || proxy.accepted() > dials + 1).await;
    proxy.lead_to(&db.url()).expect("an address");
    db.until_quiet().await;
    db.until_sessions("no session is left", <[_]>::is_empty).await;
    statement.abort();
}

#[db_testkit::test]
async fn a_dial_into_a_black_hole_does_not_keep_a_pool_open(db: TestDb) {
    let (proxy, pool) = stage(&db, options(2));
    proxy.black_hole();
    let handle = pool.handle();
    let waiting = tokio::spawn(async move { handle.acquire().await });
    until("a dial has started", async || proxy.accepted() > 0).await;
    let begun = Instant::now();

    let closed = ends(pool.close(AMPLE)).await;

    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
    assert!(closed.is_clean(), "{closed:?}");
    assert!(waiting.await.expect("no panic").expect_err("closed").is_closed());
    until_quiet(&pool).await;
}

#[db_testkit::test]
async fn idle_connections_in_a_black_hole_do_not_keep_a_pool_open(db: TestDb) {
    let (proxy, pool) = stage(&db, options(4));
    fill(&pool).await;
    proxy.black_hole();
    let begun = Instant::now();

    let closed = ends(pool.close(AMPLE)).await;

    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
    assert!(closed.is_clean(), "{closed:?}");
}

#[db_testkit::test]
async fn work_that_ends_in_time_is_not_aborted(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(1));
    let gate = Gate::shut(&db).await;
    let statement = ends(sqlx::query(Gate::WAIT).execute(pool.handle()));
    let closing = async {
        gate.until_waiting(1).await;
        let opening = async {
            until_refusing(&pool).await;
            gate.open().await;
        };
        tokio::join!(ends(pool.close(AMPLE)), opening).0
    };

    let (result, closed) = tokio::join!(statement, closing);

    result.expect("the statement ended in time");
    assert!(closed.is_clean(), "{closed:?}");
    db.until_sessions("no session is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn waiting_callers_are_refused_at_once(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(1));
    let held = ends(pool.handle().acquire()).await.expect("the only connection");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let handle = pool.handle();
        waiting.spawn(async move { handle.acquire().await });
    }
    until("all callers wait", async || pool.stats().waiting == 20).await;
    let closing = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.close(HANGS).await })
    };

    let answers = tokio::time::timeout(SLACK, waiting.join_all()).await.expect("answers at once");

    for answer in answers {
        let error = answer.expect_err("closed");
        assert_eq!(error.phase(), AcquirePhase::Closed);
        let error = Error::from(error);
        assert!(error.class() == Class::Other && !error.is_transient(), "{error}");
        assert_eq!(error.retry_after(), None);
    }
    assert!(!closing.is_finished(), "a connection is still in use");
    drop(held);
    assert!(ends(closing).await.expect("no panic").is_clean());
    until_quiet(&pool).await;
}
