//! Holders, and tasks that wait for a connection while they hold another.

use std::pin::pin;
use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_testkit::{Proxy, Session, TestDb, until};
use futures_util::FutureExt;
use tracing::Level;

use crate::events::Events;
use crate::support::{config, patient_pool};

fn pool_of_one(db: &TestDb, name: &str, acquire_timeout: Duration) -> Pool {
    let options = PoolOptions::api().name(name.to_owned()).max(1).acquire_timeout(acquire_timeout);
    Pool::new(&config(db), options)
}

#[db_testkit::test]
async fn a_holder_shows_its_call_site_time_transaction_and_statement(db: TestDb) {
    let pool = patient_pool(&db, 2);
    let (line, handle) = (line!(), pool.handle());
    let mut tx = handle.begin().await.expect("begun");
    let idle = pool.handle().acquire().await.expect("a connection");
    let sleep = sqlx::query("select pg_sleep(60), 'hunter2', $1::text").bind("hunter3").execute(&mut tx);
    tokio::select! {
        _ = sleep => unreachable!("the statement takes a minute"),
        _ = db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)) => {}
    }

    let holders = pool.holders();

    let [busy, other] = &holders[..] else { panic!("{holders:?}") };
    assert!(busy.held >= other.held, "the oldest first: {holders:?}");
    assert!(busy.in_transaction && !other.in_transaction);
    assert_eq!((busy.pid, other.pid), (tx.pid(), idle.pid()));
    assert_eq!(busy.at.to_string(), format!("{}:{line}", file!()));
    let (statement, since) = busy.statement.as_ref().expect("a statement");
    assert_eq!(statement, "select pg_sleep(60), '…', $1::text");
    assert!(*since <= busy.held);
    assert!(other.statement.is_none(), "{other:?}");
    let text = busy.to_string();
    assert!(text.starts_with(&format!("{}:{line} for ", file!())), "{text}");
    assert!(text.contains(" s, in a transaction, running for ") && !text.contains("hunter"), "{text}");
    assert!(other.to_string().contains(" s, idle for "), "{other}");
    assert_eq!((busy.idle, other.idle), (None, Some(other.held)));

    drop(tx);
    until("the connection is returned", async || pool.holders().len() == 1).await;
}

#[db_testkit::test]
async fn a_holder_shows_since_when_it_is_idle_and_whether_its_statement_is_slow(db: TestDb) {
    let pool = Pool::new(&config(&db), PoolOptions::api().max(1).slow_statement(Duration::from_millis(20)));
    let mut tx = pool.handle().begin().await.expect("begun");
    let sleep = sqlx::query("select pg_sleep(0.1)").execute(&mut tx);
    let seen = async {
        until("the statement is slow", async || pool.holders()[0].slow).await;
        assert_eq!(pool.holders()[0].idle, None);
    };
    let (slept, ()) = tokio::join!(sleep, seen);
    slept.expect("an answer");

    until("it is idle for some time", async || pool.holders()[0].idle > Some(Duration::from_millis(5))).await;
    let holder = &pool.holders()[0];
    assert!(holder.in_transaction && !holder.slow, "{holder:?}");
    let idle = holder.idle.expect("no statement runs");
    assert!(idle + Duration::from_millis(100) <= holder.held, "since the statement: {holder:?}");
    tx.rollback().await.expect("rolled back");
}

#[db_testkit::test]
async fn a_statement_whose_time_limit_has_passed_is_not_shown_as_running(db: TestDb) {
    let options = PoolOptions::api().max(1).statement_timeout(Duration::from_millis(50));
    let pool = Pool::new(&config(&db), options);
    let mut tx = pool.handle().begin().await.expect("begun");

    sqlx::query("select pg_sleep(600)").execute(&mut tx).await.expect_err("a time limit");

    let holder = &pool.holders()[0];
    assert!(holder.statement.is_none() && holder.idle.is_some(), "{holder:?}");
    drop(tx);
}

#[db_testkit::test(leaves = "pg_sleep")]
async fn a_handles_statement_is_shown_while_it_runs_and_not_during_the_ping_before_it(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let options = PoolOptions::api().max(1).ping_after(Duration::ZERO);
    let pool = Pool::new(&Config::from_url(&proxy.url()).expect("the proxy's address"), options);
    sqlx::query("select 1").execute(pool.handle()).await.expect("a connection");
    proxy.freeze();

    let mut sleep = pin!(sqlx::query("select pg_sleep(60)").execute(pool.handle()));
    assert!(sleep.as_mut().now_or_never().is_none(), "no ping is answered");
    let statement = pool.holders()[0].statement.clone();
    assert!(statement.is_none(), "{statement:?}");

    proxy.thaw();
    tokio::select! {
        _ = sleep => unreachable!("the statement takes a minute"),
        _ = db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)) => {}
    }
    let (statement, _) = pool.holders()[0].statement.clone().expect("a statement");
    assert_eq!(statement, "select pg_sleep(60)");
}

#[db_testkit::test]
async fn a_statement_on_an_idle_connection_is_shown(db: TestDb) {
    let pool = patient_pool(&db, 1);
    sqlx::query("select 1").execute(pool.handle()).await.expect("a connection");

    tokio::select! {
        _ = sqlx::query("select pg_sleep(60)").execute(pool.handle()) => unreachable!("the statement takes a minute"),
        () = until("the statement is shown", async || pool.holders().iter().any(|holder| holder.statement.is_some())) => {}
    }
}

#[db_testkit::test]
async fn an_ended_transaction_is_not_shown(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let mut tx = pool.handle().begin().await.expect("begun");
    assert!(pool.holders()[0].in_transaction);
    let (sender, receiver) = std::sync::mpsc::channel();
    let watched = pool.clone();
    // The connection is still checked out when this hook runs.
    tx.after_commit(move || sender.send(watched.holders()).expect("the test waits"));

    tx.commit().await.expect("committed");

    let holders = receiver.try_recv().expect("the hook ran");
    assert_eq!(holders.len(), 1);
    assert!(!holders[0].in_transaction, "{holders:?}");
}

#[db_testkit::test]
async fn a_nested_acquire_in_a_spawned_task_is_logged_when_its_wait_begins(db: TestDb) {
    let events = Events::of("own");
    let pool = pool_of_one(&db, "own", crate::support::PATIENCE);
    let watched = pool.clone();
    let (named, is_named) = tokio::sync::oneshot::channel();
    let waiting = tokio::spawn(async move {
        let (first, handle) = (line!(), pool.handle());
        let held = handle.acquire().await.expect("the only connection");
        let (second, handle) = (line!(), pool.handle());
        tokio::select! {
            _ = handle.acquire() => unreachable!("the only connection is in use"),
            signal = is_named => signal.expect("the test waits"),
        }
        drop(held);
        (first, second)
    });
    until("the nested acquire is logged", async || !events.with("waits for").is_empty()).await;
    assert_eq!(watched.stats().waiting, 1, "the caller still waits");
    named.send(()).expect("the task still waits");
    let (first, second) = waiting.await.expect("no panic");

    let lines = events.with("waits for");
    assert_eq!((lines.len(), lines[0].level), (1, Level::WARN));
    let text = &lines[0].message;
    assert!(
        text.starts_with(&format!(
            "{file}:{second} waits for a connection while its task holds one that {file}:{first} took",
            file = file!()
        )),
        "{text}"
    );
    assert_eq!(watched.stats().totals.nested_acquires, 1);
    assert_eq!(watched.stats().totals.timed_out, 0);
}

#[db_testkit::test]
async fn the_error_of_a_nested_acquire_reports_it(db: TestDb) {
    let pool = pool_of_one(&db, "own error", Duration::from_millis(200));
    // `block_on` runs the future outside a task.
    let blocked = own_wait(pool.clone()).await;
    let spawned = tokio::spawn(own_wait(pool.clone())).await.expect("no panic");

    for (line, error) in [blocked, spawned] {
        let first = error.holds_one_taken_at().expect("the call site of the held connection");
        assert_eq!(first.to_string(), format!("{}:{line}", file!()));
        let text = error.to_string();
        let expected =
            format!("; this task already holds a connection, acquired at {}:{line} (acquire at ", file!());
        assert!(text.contains(&expected), "{text}");
    }
    assert_eq!(pool.stats().totals.nested_acquires, 2);
}

async fn own_wait(pool: Pool) -> (u32, db_core::AcquireError) {
    let (line, handle) = (line!(), pool.handle());
    let _held = handle.acquire().await.expect("the only connection");
    (line, pool.handle().acquire().await.expect_err("no second connection"))
}

#[db_testkit::test]
async fn a_task_that_waits_for_another_task_is_not_reported(db: TestDb) {
    let pool = pool_of_one(&db, "others", Duration::from_millis(200));
    let _held = pool.handle().acquire().await.expect("the only connection");
    let handle = pool.handle();

    let error = tokio::spawn(async move { handle.acquire().await.expect_err("no second connection") })
        .await
        .expect("no panic");

    assert!(error.holds_one_taken_at().is_none(), "{error}");
    assert_eq!(pool.stats().totals.nested_acquires, 0);
}

#[db_testkit::test]
async fn a_task_that_returned_its_connection_is_not_reported(db: TestDb) {
    let pool = pool_of_one(&db, "returned", Duration::from_millis(200));
    drop(pool.handle().acquire().await.expect("the only connection"));
    let handle = pool.handle();
    let held = tokio::spawn(async move { handle.acquire().await.expect("the only connection") });
    let _held = held.await.expect("no panic");

    let error = pool.handle().acquire().await.expect_err("no second connection");

    assert!(error.holds_one_taken_at().is_none(), "{error}");
}
