//! Faults of the server and of its sessions.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use db_core::{AcquirePhase, Class, CloseReason, Error, Pool};
use db_embedded::{Released, Server};
use db_testkit::{Stop, TestDb, TestServer, until};

use super::stage::{
    Gate, LONG, SLACK, ask, ends, fill, hasty, options, pool, recovers, rows, table, take_all, until_quiet,
};
use super::traffic::Traffic;

/// Ends one session, and waits until it is gone.
async fn terminate(db: &TestDb, pid: i32) {
    let gone: bool = sqlx::query_scalar("select pg_terminate_backend($1, 10000)")
        .bind(pid)
        .fetch_one(&db.pool())
        .await
        .expect("an answer");
    assert!(gone);
}

async fn pids(pool: &Pool) -> BTreeSet<i32> {
    take_all(pool).await.iter().map(|conn| conn.pid()).collect()
}

#[db_testkit::test]
async fn one_terminated_session_costs_one_new_connection_and_the_others_are_kept(db: TestDb) {
    let pool = pool(&db.url(), options(4));
    let before = fill(&pool).await;
    // The connection returned last, so that the next caller gets it.
    let last = ends(pool.handle().acquire()).await.expect("a connection").pid();
    terminate(&db, last).await;

    ask(&pool, 1).await.expect("the caller does not notice");

    until_quiet(&pool).await;
    let after = pids(&pool).await;
    assert_eq!(after.intersection(&before).count(), 3, "{after:?} {before:?}");
    recovers(&pool).await;
    let totals = pool.stats().totals;
    assert_eq!((totals.closed.of(CloseReason::Lost), totals.dialled), (1, 5), "{totals:?}");
}

#[db_testkit::test]
async fn one_terminated_idle_session_costs_one_new_connection(db: TestDb) {
    let keepalive = Duration::from_millis(500);
    let pool = pool(&db.url(), options(10).min_idle(3).keepalive(keepalive));
    until("three connections are ready", async || pool.stats().idle == 3).await;
    terminate(&db, db.sessions().await.expect("sessions")[0].pid).await;

    until("the dead session is found and replaced", async || {
        pool.stats().totals.closed.of(CloseReason::Lost) == 1 && pool.stats().idle == 3
    })
    .await;

    until_quiet(&pool).await;
    let stats = pool.stats();
    assert_eq!((stats.open, stats.totals.dialled, stats.totals.acquired), (3, 4, 0), "{stats:?}");
}

#[db_testkit::test]
async fn a_session_terminated_in_a_statement_is_lost_and_the_others_are_kept(db: TestDb) {
    let pool = pool(&db.url(), options(3));
    let before = fill(&pool).await;
    let gate = Gate::shut(&db).await;
    let statement = ends(sqlx::query(Gate::WAIT).execute(pool.handle()));
    let fault = async { terminate(&db, gate.until_waiting(1).await[0]).await };

    let (result, ()) = tokio::join!(statement, fault);

    let error = Error::from(result.expect_err("its session is gone"));
    assert_eq!((error.class(), error.sqlstate().as_deref()), (Class::Lost, Some("57P01")), "{error:?}");
    assert!(error.is_transient());
    until_quiet(&pool).await;
    assert_eq!(pids(&pool).await.intersection(&before).count(), 2);
    recovers(&pool).await;
    let totals = pool.stats().totals;
    assert_eq!((totals.closed.of(CloseReason::Lost), totals.dialled), (1, 4), "{totals:?}");
}

/// A server of the test's own with an empty table, and a pool.
async fn own_server() -> (TestServer, TestDb, Pool) {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    table(&db).await;
    let pool = pool(&db.url(), options(4));
    (server, db, pool)
}

/// Applies a fault to the server during a transaction and other traffic. The same pool must serve again afterwards.
async fn serves_again_after(fault: impl AsyncFn(&TestServer, i32)) {
    let (server, db, pool) = own_server().await;
    fill(&pool).await;
    let mut tx = ends(pool.handle().begin()).await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    let traffic = Traffic::begin(&pool, 3);
    traffic.until_answers().await;

    fault(&server, tx.pid()).await;

    let error = ends(tx.commit()).await.expect_err("its session is gone");
    assert!(matches!(error, Error::CommitUnknown(_)) && error.class() == Class::Lost, "{error:?}");
    traffic.until_answers().await;
    traffic.end().await;
    recovers(&pool).await;
    assert_eq!(rows(&db).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_fast_stop_the_same_pool_serves_again() {
    serves_again_after(async |server, _| server.restart(Stop::Fast).await.expect("restarted")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_immediate_stop_the_same_pool_serves_again() {
    serves_again_after(async |server, _| server.restart(Stop::Immediate).await.expect("restarted")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_server_was_killed_the_same_pool_serves_again() {
    serves_again_after(async |server, _| server.restart(Stop::Kill).await.expect("restarted")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_killed_backend_took_all_sessions_with_it_the_same_pool_serves_again() {
    serves_again_after(async |server, pid| {
        server.kill_backend(pid).await.expect("killed");
        server.until_up().await.expect("recovered");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_while_the_server_is_down_reports_the_failure_or_waits_until_it_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    open_to_all(folder.path());
    let data = folder.path().join("server");
    let server = start(&data).await;
    let limit = Duration::from_secs(1);
    let (hasty, patient) =
        (pool(&server.url("postgres"), hasty(2, limit, LONG)), pool(&server.url("postgres"), options(2)));
    fill(&hasty).await;
    fill(&patient).await;
    let released = tokio::task::spawn_blocking(|| server.release()).await.expect("no panic");
    assert_eq!(released.expect("stopped"), Released::Stopped);

    let error = ask(&hasty, 1).await.expect_err("there is no server");
    let Error::Acquire(acquire) = &error else { panic!("{error:?}") };
    assert_eq!((acquire.phase(), error.class()), (AcquirePhase::Dial, Class::NotReached), "{error}");
    assert!(acquire.waited() < limit + SLACK, "{error}");
    let (failure, _) = acquire.last_dial_failure().expect("a failure");
    assert!(failure.starts_with("no server answers"), "{failure}");

    let waiting = {
        let pool = patient.clone();
        tokio::spawn(async move { ask(&pool, 2).await })
    };
    until("a second dial has failed", async || patient.stats().totals.dial_failures > 1).await;
    let _server = start(&data).await;
    waiting.await.expect("no panic").expect("the server is back");
    recovers(&patient).await;
    recovers(&hasty).await;
}

async fn start(data: &Path) -> Server {
    let data = data.to_owned();
    tokio::task::spawn_blocking(|| Server::kept(data).start()).await.expect("no panic").expect("a server")
}

/// As root, the server runs as another user, who must be able to enter the folder.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).expect("permissions");
}
