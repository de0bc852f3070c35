//! Pools that close while something is wrong.

use std::time::{Duration, Instant};

use db_core::{AcquirePhase, Class, Error, Pool};
use db_testkit::{Proxy, TestDb, until};

use super::panics;
use super::stage::{Gate, HANGS, SLACK, ends, fill, options, stage, until_at_rest, until_control};

/// Time enough to finish.
const AMPLE: Duration = Duration::from_secs(15);

/// Waits until the pool takes no more callers, and shows that it says so at once.
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
async fn a_statement_that_does_not_end_is_cancelled_and_its_line_is_named(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(2));
    fill(&pool).await;
    let sleep =
        |handle: db_core::Handle| async move { sqlx::query("select pg_sleep(60)").execute(handle).await };
    // The connection for cancelling is there already: half a second after the cancel, the session would be ended.
    let cut_off = tokio::spawn(sleep(pool.handle()));
    db.until_sessions("it runs", |all| all.iter().any(db_testkit::Session::is_sleeping)).await;
    cut_off.abort();
    until("it is cancelled", async || pool.stats().totals.repaired == 1).await;
    let (line, handle) = (line!(), pool.handle());
    let statement = tokio::spawn(sleep(handle));
    db.until_sessions("it runs", |all| all.iter().any(db_testkit::Session::is_sleeping)).await;
    let begun = Instant::now();

    let deadline = Duration::from_secs(4);
    let closed = ends(pool.close(deadline)).await;

    assert!(begun.elapsed() < deadline, "{:?}", begun.elapsed());
    assert!(closed.in_time && !closed.is_clean(), "{closed:?}");
    let [cut] = &closed.cut[..] else { panic!("{closed:?}") };
    assert_eq!(cut.at.to_string(), format!("{}:{line}", file!()));
    assert!(cut.to_string().contains("select pg_sleep"), "{cut}");
    let error = Error::from(statement.await.expect("no panic").expect_err("it was cancelled"));
    assert_eq!((error.class(), error.sqlstate().as_deref()), (Class::TimedOut, Some("57014")), "{error:?}");
    db.until_sessions("none is left", <[_]>::is_empty).await;
    panics::assert_none();
}

/// Closes a pool with a statement under way and another connection idle, over a link that says nothing any more.
async fn ends_in_time_in_spite_of(db: &TestDb, fault: fn(&Proxy)) {
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
    assert!(!closed.in_time && closed.cut.len() == 1, "{closed:?}");
    // Whoever was at work still ends, and closing can be waited for again.
    statement.abort();
    gate.open().await;
    proxy.heal();
    assert!(ends(pool.close(AMPLE)).await.is_clean());
    until_at_rest(&pool).await;
    assert_eq!(pool.stats().open, 0);
    panics::assert_none();
}

#[db_testkit::test]
async fn in_a_black_hole_a_pool_closes_within_its_deadline(db: TestDb) {
    ends_in_time_in_spite_of(&db, Proxy::black_hole).await;
}

#[db_testkit::test]
async fn with_a_frozen_server_a_pool_closes_within_its_deadline(db: TestDb) {
    ends_in_time_in_spite_of(&db, Proxy::freeze).await;
}

#[db_testkit::test]
async fn a_statement_whose_link_froze_does_not_outlive_its_pool(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    let gate = Gate::shut(&db).await;
    let handle = pool.handle();
    let statement = tokio::spawn(async move { sqlx::query(Gate::WAIT).execute(handle).await });
    gate.until_waiting(1).await;
    until_control(&db).await;
    proxy.freeze_open();

    let closed = ends(pool.close(Duration::from_secs(3))).await;

    // Beside the link that is frozen, the server can be told.
    assert_eq!(closed.cut.len(), 1, "{closed:?}");
    db.until_quiet().await;
    db.until_sessions("none is left", <[_]>::is_empty).await;
    statement.abort();
}

#[db_testkit::test]
async fn a_dial_into_a_black_hole_does_not_keep_a_pool_open(db: TestDb) {
    let (proxy, pool) = stage(&db, options(2));
    proxy.black_hole();
    let handle = pool.handle();
    let waiting = tokio::spawn(async move { handle.acquire().await });
    until("it is being dialled", async || proxy.accepted() > 0).await;
    let begun = Instant::now();

    let closed = ends(pool.close(AMPLE)).await;

    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
    assert!(closed.is_clean(), "{closed:?}");
    assert!(waiting.await.expect("no panic").expect_err("closed").is_closed());
    until_at_rest(&pool).await;
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
async fn work_that_ends_in_time_is_not_cut(db: TestDb) {
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

    result.expect("it had its time");
    assert!(closed.is_clean(), "{closed:?}");
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn those_who_wait_are_sent_away_at_once(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(1));
    let held = ends(pool.handle().acquire()).await.expect("the only one");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let handle = pool.handle();
        waiting.spawn(async move { handle.acquire().await });
    }
    until("they wait", async || pool.stats().waiting == 20).await;
    let closing = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.close(HANGS).await })
    };

    let answers = tokio::time::timeout(SLACK, waiting.join_all()).await.expect("at once");

    for answer in answers {
        let error = answer.expect_err("closed");
        assert_eq!(error.phase(), AcquirePhase::Closed);
        let error = Error::from(error);
        assert!(error.class() == Class::Other && !error.is_transient(), "{error}");
        assert_eq!(error.retry_after(), None);
    }
    assert!(!closing.is_finished(), "one is still out");
    drop(held);
    assert!(ends(closing).await.expect("no panic").is_clean());
    until_at_rest(&pool).await;
}
