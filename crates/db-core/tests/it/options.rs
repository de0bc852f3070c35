//! The effect of each pool option.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use db_core::{CloseReason, Config, Error, Pool, PoolOptions, Reset, Tracking};
use db_testkit::{Proxy, Session, TestDb, until};
use futures_util::TryStreamExt;
use futures_util::future::pending;
use sqlx::Row;
use tracing::Level;

use crate::events::Events;
use crate::support::{PATIENCE, config, of_connections, take, until_repaired};

/// Longer than any test, so that no test reaches this limit.
const NEVER: Duration = Duration::from_hours(1);

/// Options whose limits have no effect in a test; each test shortens the one that it tests.
fn calm() -> PoolOptions {
    PoolOptions::api()
        .name("calm")
        .max(4)
        .acquire_timeout(PATIENCE)
        .idle_timeout(NEVER)
        .max_lifetime(NEVER)
        .ping_after(NEVER)
        .keepalive(NEVER)
        .leak_after(NEVER)
        .statement_timeout(PATIENCE)
}

fn pool(db: &TestDb, options: PoolOptions) -> Pool {
    Pool::new(&config(db), options)
}

fn through(proxy: &Proxy, options: PoolOptions) -> Pool {
    Pool::new(&Config::from_url(&proxy.url()).expect("the proxy's address"), options)
}

async fn pid(pool: &Pool) -> i32 {
    until_repaired(pool).await;
    pool.handle().acquire().await.expect("a connection").pid()
}

/// Opens this number of connections and returns them. Returns their process ids.
async fn open(pool: &Pool, count: usize) -> Vec<i32> {
    take(pool, count).await.iter().map(|conn| conn.pid()).collect()
}

async fn setting(pool: &Pool, name: &str) -> String {
    // `reset_val` is read, since the server shows TCP settings as zero on a Unix socket.
    sqlx::query_scalar("select reset_val from pg_settings where name = $1")
        .bind(name)
        .fetch_one(pool.handle())
        .await
        .expect("a setting")
}

async fn search_path(pool: &Pool) -> String {
    until_repaired(pool).await;
    sqlx::query_scalar("show search_path").fetch_one(pool.handle()).await.expect("a path")
}

async fn table(db: &TestDb) {
    sqlx::query("create table t (n int)").execute(&db.pool()).await.expect("a table");
}

async fn rows(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count")
}

#[db_testkit::test]
async fn a_pools_sessions_have_its_name(db: TestDb) {
    let pool = pool(&db, calm().name("orders"));
    let _held = pool.handle().acquire().await.expect("a connection");
    let _theirs = pool.sqlx().acquire().await.expect("a connection of sqlx's pool");

    let sessions = db.until_sessions("three", |all| all.len() == 3).await;

    let mut names: Vec<_> = sessions.iter().map(|session| session.application_name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["orders", "orders control", "orders sqlx"]);
    assert_eq!(pool.name(), "orders");
}

#[db_testkit::test]
async fn no_more_than_max_sessions_are_opened_for_waiting_callers(db: TestDb) {
    let pool = pool(&db, calm().max(2));
    let held = [pool.handle().acquire().await, pool.handle().acquire().await];
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let handle = pool.handle();
            tokio::spawn(async move { handle.acquire().await.expect("a connection").pid() })
        })
        .collect();
    until("all callers wait", async || pool.stats().waiting == 5).await;

    assert_eq!(pool.stats().dialling, 0);
    assert_eq!(of_connections(&db.sessions().await.expect("the sessions")), 2);
    drop(held);
    for waiter in waiting {
        waiter.await.expect("no panic");
    }
    assert_eq!(pool.stats().totals.dialled, 2);
}

#[db_testkit::test]
async fn a_max_of_zero_counts_as_one(db: TestDb) {
    let pool = pool(&db, calm().max(0));

    pid(&pool).await;
}

#[db_testkit::test]
async fn connections_above_max_idle_are_closed_when_they_are_returned(db: TestDb) {
    let pool = pool(&db, calm().max_idle(Some(1)));

    open(&pool, 4).await;

    db.until_sessions("one session is left", |all| of_connections(all) == 1).await;
    until("the others are gone", async || (pool.stats().open, pool.stats().idle) == (1, 1)).await;
}

#[db_testkit::test]
async fn min_idle_connections_are_opened_before_the_first_caller(db: TestDb) {
    let pool = pool(&db, calm().min_idle(2));

    db.until_sessions("two", |all| of_connections(all) == 2).await;
    until("two are ready", async || pool.stats().idle == 2).await;
    // With one of them in use, another is dialled.
    let _held = pool.handle().acquire().await.expect("a connection");
    pool.set_limits(pool.limits());
    until("two are ready again", async || pool.stats().idle == 2).await;
    assert_eq!(pool.stats().totals.acquired, 1);
}

#[db_testkit::test]
async fn dials_for_min_idle_end_with_the_last_handle(db: TestDb) {
    for fault in [Proxy::refuse, Proxy::black_hole] {
        let proxy = Proxy::start(&db).expect("a proxy");
        fault(&proxy);
        // An attempt takes three quarters of the acquire timeout.
        let acquire_timeout = Duration::from_millis(800);
        let pool = through(&proxy, calm().min_idle(1).acquire_timeout(acquire_timeout));
        // The dials hold this value, too.
        let attached = Arc::new(());
        let there = Arc::downgrade(&attached);
        pool.attach(attached);
        let attempts = || proxy.accepted() + proxy.refused();
        let handle = pool.handle();
        drop(pool);
        let before = attempts();
        until("dialling continues for the handle", async || attempts() > before + 1).await;
        assert!(there.upgrade().is_some());

        drop(handle);

        until("no dial is left", async || there.upgrade().is_none()).await;
    }
}

#[db_testkit::test]
async fn min_idle_connections_outlast_the_idle_timeout(db: TestDb) {
    let idle_timeout = Duration::from_millis(50);
    let kept = pool(&db, calm().min_idle(2).idle_timeout(idle_timeout));
    let before = open(&kept, 4).await;
    until("the spare connections are closed", async || kept.stats().open == 2).await;

    // A connection that is returned later, and has idled for too long by then.
    let witness = pool(&db, calm().idle_timeout(idle_timeout));
    open(&witness, 1).await;
    until("the witness was closed", async || witness.stats().open == 0).await;

    for after in open(&kept, 2).await {
        assert!(before.contains(&after), "{after} is none of {before:?}");
    }
}

#[db_testkit::test]
async fn a_caller_waits_for_the_acquire_timeout(db: TestDb) {
    let acquire_timeout = Duration::from_millis(100);
    let pool = pool(&db, calm().max(1).acquire_timeout(acquire_timeout));
    let _held = pool.handle().acquire().await.expect("the only connection");
    let asked = Instant::now();

    let error = pool.handle().acquire().await.expect_err("no second connection");

    assert!(error.waited() >= acquire_timeout, "{error}");
    // Less than the default.
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(pool.stats().totals.timed_out, 1);
}

#[db_testkit::test]
async fn a_connection_that_idles_for_too_long_is_closed(db: TestDb) {
    let pool = pool(&db, calm().idle_timeout(Duration::from_millis(50)));

    open(&pool, 2).await;

    db.until_sessions("none", |all| of_connections(all) == 0).await;
    // The server sees the end a moment before the pool does.
    until("the pool has none", async || pool.stats().open == 0).await;
}

#[db_testkit::test]
async fn the_idle_time_of_a_repaired_connection_starts_with_its_return(db: TestDb) {
    let idle_timeout = Duration::from_secs(2);
    let leak_after = Duration::from_millis(100);
    let pool = pool(&db, calm().idle_timeout(idle_timeout).leak_after(leak_after));
    let mut repaired = pool.handle().acquire().await.expect("a connection");
    let other = pool.handle().acquire().await.expect("a connection");
    let first = repaired.pid();
    sqlx::query("set search_path = nowhere").execute(&mut repaired).await.expect("set");
    until("both were held for long", async || pool.holders().iter().all(|it| it.held > idle_timeout)).await;

    drop(repaired);
    until("the connection is repaired", async || pool.stats().idle == 1).await;
    drop(other);
    // Once this checkout counts as leaked, the keeper has also checked the idle connections.
    let leaks = pool.handle().acquire().await.expect("a connection");
    until("the leak is flagged", async || pool.holders().iter().all(|it| it.leaked)).await;

    assert_ne!(leaks.pid(), first, "the connection returned last was taken");
    assert_eq!(pid(&pool).await, first);
}

#[db_testkit::test]
async fn an_expired_connection_is_not_handed_to_a_waiting_caller(db: TestDb) {
    let max_lifetime = Duration::from_millis(100);
    let pool = pool(&db, calm().max(1).max_lifetime(max_lifetime));
    let old = pool.handle().acquire().await.expect("a connection");
    let first = old.pid();
    let handle = pool.handle();
    let waiter = tokio::spawn(async move { handle.acquire().await.expect("a connection").pid() });
    until("the caller waits", async || pool.stats().waiting == 1).await;
    until("the connection has expired", async || pool.holders()[0].held > max_lifetime).await;

    drop(old);

    assert_ne!(waiter.await.expect("no panic"), first);
    db.until_sessions("the first session is gone", |all| all.iter().all(|session| session.pid != first))
        .await;
}

#[db_testkit::test]
async fn an_expired_idle_connection_is_closed_without_a_caller(db: TestDb) {
    let pool = pool(&db, calm().max_lifetime(Duration::from_millis(100)));

    open(&pool, 2).await;

    db.until_sessions("none", |all| of_connections(all) == 0).await;
}

#[db_testkit::test]
async fn an_expired_connection_in_use_is_not_closed(db: TestDb) {
    let pool = pool(&db, calm().max(2).max_lifetime(Duration::from_millis(50)));
    let mut held = pool.handle().acquire().await.expect("a connection");
    let other = pid(&pool).await;
    db.until_sessions("the other connection has expired", |all| {
        all.iter().all(|session| session.pid != other)
    })
    .await;

    sqlx::query("select 1").execute(&mut held).await.expect("the connection still works");
}

#[db_testkit::test]
async fn a_connection_is_closed_after_max_uses(db: TestDb) {
    let pool = pool(&db, calm().max(1).max_uses(Some(3)));

    let uses = [pid(&pool).await, pid(&pool).await, pid(&pool).await, pid(&pool).await];

    assert!(uses[0] == uses[1] && uses[1] == uses[2] && uses[2] != uses[3], "{uses:?}");
}

#[db_testkit::test]
async fn a_use_that_ends_in_a_repair_counts(db: TestDb) {
    let options = calm().max(1).max_uses(Some(2)).reset(Reset::DiscardAll);
    let pool = pool(&db, options);

    let uses = [pid(&pool).await, pid(&pool).await, pid(&pool).await];

    assert!(uses[0] == uses[1] && uses[1] != uses[2], "{uses:?}");
}

#[db_testkit::test]
async fn limits_of_zero_leave_each_connection_one_use(db: TestDb) {
    for options in [calm().max(1).max_uses(Some(0)), calm().max(1).max_lifetime(Duration::ZERO)] {
        let pool = pool(&db, options);

        assert_ne!(pid(&pool).await, pid(&pool).await);
        assert_eq!(pool.stats().totals.dialled, 2);
    }
}

#[db_testkit::test]
async fn a_dead_connection_that_idled_for_longer_than_ping_after_is_not_handed_out(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let pool = through(&proxy, calm().max(1).ping_after(Duration::ZERO));
    let dead = pid(&pool).await;
    proxy.half_open();

    let mut conn = pool.handle().acquire().await.expect("a connection");

    assert_ne!(conn.pid(), dead);
    sqlx::query("select 1").execute(&mut conn).await.expect("the connection works");
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 1);
}

#[db_testkit::test]
async fn a_connection_that_idled_for_less_than_ping_after_is_not_pinged(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let pool = through(&proxy, calm().max(1).ping_after(NEVER));
    let first = pid(&pool).await;
    proxy.freeze();

    // A ping would get no answer.
    assert_eq!(pid(&pool).await, first);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0);
}

#[db_testkit::test]
async fn returning_an_unused_connection_does_not_count_as_an_answer(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let ping_after = Duration::from_millis(200);
    let pool = through(&proxy, calm().max(1).ping_after(ping_after));
    let unused = pool.handle().acquire().await.expect("a connection");
    let dead = unused.pid();
    until("the last answer is long ago", async || pool.holders()[0].held > ping_after).await;
    proxy.half_open();

    drop(unused);

    assert_ne!(pid(&pool).await, dead);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 1);
}

#[db_testkit::test]
async fn an_answer_to_a_statement_replaces_a_ping(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    // Longer than returning and acquiring a connection on a busy machine.
    let ping_after = Duration::from_secs(3);
    let pool = through(&proxy, calm().max(1).ping_after(ping_after));
    let mut used = pool.handle().acquire().await.expect("a connection");
    let first = used.pid();
    until("the last answer is long ago", async || pool.holders()[0].held > ping_after).await;

    sqlx::query("select 1").execute(&mut used).await.expect("an answer");
    proxy.freeze();
    drop(used);

    // A ping would get no answer.
    assert_eq!(pid(&pool).await, first);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0);
}

#[db_testkit::test]
async fn keepalive_finds_and_replaces_a_dead_connection_without_a_caller(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let options = calm().min_idle(1).keepalive(Duration::from_millis(100));
    let pool = through(&proxy, options);
    until("a connection is ready", async || pool.stats().idle == 1).await;
    proxy.half_open();

    until("the dead connection is found", async || pool.stats().totals.closed.of(CloseReason::Lost) == 1)
        .await;
    until("another connection is ready", async || pool.stats().idle == 1).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    sqlx::query("select 1").execute(&mut conn).await.expect("the connection works");
    assert_eq!(pool.stats().totals.dialled, 2);
}

#[db_testkit::test]
async fn keepalive_keeps_a_connection_that_answers(db: TestDb) {
    let keepalive = Duration::from_millis(50);
    let pool = pool(&db, calm().min_idle(1).keepalive(keepalive));
    until("a connection is ready", async || pool.stats().idle == 1).await;
    let first = pid(&pool).await;
    let asked = async || {
        // A ping leaves no other trace on the server.
        let sql = "select state_change::text from pg_stat_activity where pid = $1";
        sqlx::query_scalar::<_, String>(sql).bind(first).fetch_one(&db.pool()).await.expect("the session")
    };
    for _ in 0..5 {
        let before = asked().await;
        until("the connection was pinged", async || asked().await != before).await;
    }

    until("the connection is idle again", async || pool.stats().idle == 1).await;
    assert_eq!(pid(&pool).await, first);
    assert_eq!(pool.stats().totals.dialled, 1, "no other connection was dialled");
}

#[db_testkit::test]
async fn the_server_gets_keepalive_settings_for_its_end_of_the_link(db: TestDb) {
    let pool = pool(&db, calm().keepalive(Duration::from_secs(45)));

    for (name, value) in [
        ("tcp_keepalives_idle", "45"),
        ("tcp_keepalives_interval", "15"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "90000"),
    ] {
        assert_eq!(setting(&pool, name).await, value, "{name}");
    }
}

#[db_testkit::test]
async fn reset_rollback_undoes_raw_transactions_and_session_changes(db: TestDb) {
    table(&db).await;
    let pool = pool(&db, calm().max(1).reset(Reset::Rollback));
    let first = leave_open(&pool).await;
    assert_eq!((pid(&pool).await, rows(&db).await), (first, 0));

    sqlx::query("set search_path = nowhere").execute(pool.handle()).await.expect("set");
    assert_eq!(search_path(&pool).await, "\"$user\", public");
    assert_eq!(pid(&pool).await, first, "the same connection");
}

#[db_testkit::test]
async fn reset_commit_commits_a_raw_transaction(db: TestDb) {
    table(&db).await;
    let pool = pool(&db, calm().max(1).reset(Reset::Commit));
    let first = leave_open(&pool).await;
    assert_eq!((pid(&pool).await, rows(&db).await), (first, 1));

    sqlx::query("set search_path = nowhere").execute(pool.handle()).await.expect("set");
    assert_eq!(search_path(&pool).await, "\"$user\", public");
}

#[db_testkit::test]
async fn reset_commit_does_not_commit_failed_or_abandoned_work_nor_transactions_of_the_pool(db: TestDb) {
    table(&db).await;
    let pool = pool(&db, calm().max(1).reset(Reset::Commit));

    let mut conn = pool.handle().acquire().await.expect("a connection");
    insert_in_open(&mut conn).await;
    sqlx::query("select 1 / 0").execute(&mut conn).await.expect_err("a division by zero");
    drop(conn);
    pid(&pool).await;
    assert_eq!(rows(&db).await, 0, "after a failure");

    let mut conn = pool.handle().acquire().await.expect("a connection");
    insert_in_open(&mut conn).await;
    tokio::select! {
        _ = sqlx::query("select pg_sleep(60)").execute(&mut conn) => unreachable!("the statement takes a minute"),
        _ = db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)) => {}
    }
    drop(conn);
    pid(&pool).await;
    assert_eq!(rows(&db).await, 0, "after an abandoned statement");

    let mut tx = pool.handle().begin().await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    drop(tx);
    pid(&pool).await;
    assert_eq!(rows(&db).await, 0, "without a commit");
}

#[db_testkit::test]
async fn reset_keep_leaves_settings_but_no_transaction_to_the_next_caller(db: TestDb) {
    table(&db).await;
    let pool = pool(&db, calm().max(1).reset(Reset::Keep));
    let first = leave_open(&pool).await;
    assert_eq!((pid(&pool).await, rows(&db).await), (first, 0));

    sqlx::query("set search_path = nowhere").execute(pool.handle()).await.expect("set");
    assert_eq!(search_path(&pool).await, "nowhere");
}

#[db_testkit::test]
async fn reset_discard_all_undoes_changes_that_no_text_shows(db: TestDb) {
    table(&db).await;
    let pool = pool(&db, calm().max(1).reset(Reset::DiscardAll));
    let first = leave_open(&pool).await;
    assert_eq!((pid(&pool).await, rows(&db).await), (first, 0));

    sqlx::query("select set_config('search_path', 'nowhere', false)")
        .execute(pool.handle())
        .await
        .expect("set");
    assert_eq!(search_path(&pool).await, "\"$user\", public");
    assert_eq!(pid(&pool).await, first, "the same connection");
}

/// Begins a transaction with raw SQL, writes in it, and returns the connection.
async fn leave_open(pool: &Pool) -> i32 {
    let mut conn = pool.handle().acquire().await.expect("a connection");
    insert_in_open(&mut conn).await;
    conn.pid()
}

async fn insert_in_open(conn: &mut db_core::Conn) {
    sqlx::query("begin").execute(&mut *conn).await.expect("begun");
    sqlx::query("insert into t values (1)").execute(conn).await.expect("inserted");
}

#[db_testkit::test]
async fn a_statement_that_takes_too_long_fails_and_is_cancelled_on_the_server(db: TestDb) {
    let options = calm().max(1).statement_timeout(Duration::from_millis(300));
    let pool = pool(&db, options);
    let first = pid(&pool).await;

    let error = sqlx::query("select pg_sleep(60)").execute(pool.handle()).await.expect_err("a timeout");

    let error = Error::from(error);
    assert!(matches!(&error, Error::Deadline(error) if !error.is_transaction()), "{error:?}");
    assert!(error.to_string().contains("options.rs:"), "{error}");
    db.until_quiet().await;
    until("the connection is repaired", async || pool.stats().totals.repaired == 1).await;
    assert_eq!(pool.stats().totals.cancelled, 1);
    assert_eq!(pid(&pool).await, first, "the same connection");
}

#[db_testkit::test]
async fn the_statement_timeout_applies_to_each_row_and_not_to_the_whole(db: TestDb) {
    let limit = Duration::from_millis(1500);
    let pool = pool(&db, calm().statement_timeout(limit));
    // The server sends a row at once when the row fills its buffer of 8 kB.
    let sql = "select n, repeat('x', 20000), pg_sleep(0.2) from generate_series(1, 10) n";
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let begun = Instant::now();

    let read: Vec<i32> = sqlx::query(sql)
        .fetch(&mut conn)
        .map_ok(|row| row.get::<i32, _>(0))
        .try_collect()
        .await
        .expect("all rows");

    assert_eq!(read.len(), 10);
    assert!(begun.elapsed() > limit, "{:?}", begun.elapsed());
}

#[db_testkit::test]
async fn a_row_that_takes_too_long_ends_a_stream(db: TestDb) {
    let options = calm().max(1).statement_timeout(Duration::from_millis(1500));
    let pool = pool(&db, options);
    let sql =
        "select n, repeat('x', 20000), case n when 3 then pg_sleep(60) end from generate_series(1, 3) n";
    let mut rows = sqlx::query(sql).fetch(pool.handle());

    assert!(rows.try_next().await.expect("the first row").is_some());
    // PostgreSQL 18 sends the whole second row before it computes the third; older versions hold back its end.
    let error = loop {
        match rows.try_next().await {
            Ok(row) => assert!(row.is_some(), "the statement takes a minute"),
            Err(error) => break Error::from(error),
        }
    };

    assert!(matches!(&error, Error::Deadline(_)), "{error:?}");
    drop(rows);
    db.until_quiet().await;
}

#[db_testkit::test]
async fn the_work_of_a_transaction_that_takes_too_long_is_dropped_and_rolled_back(db: TestDb) {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    table(&db).await;
    let pool = pool(&db, calm().max(1).tx_timeout(Duration::from_millis(500)));
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&dropped);

    let work = pool.handle().tx(async move |tx| {
        let _flag = Flag(flag);
        sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
        pending::<Result<(), Error>>().await
    });
    let result = tokio::time::timeout(PATIENCE, work).await.expect("the transaction ends");

    assert!(matches!(&result, Err(Error::Deadline(error)) if error.is_transaction()), "{result:?}");
    assert!(dropped.load(Ordering::SeqCst));
    db.until_quiet().await;
    assert_eq!(rows(&db).await, 0);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0);
}

#[db_testkit::test]
async fn statements_of_a_transaction_that_takes_too_long_fail(db: TestDb) {
    table(&db).await;
    let pool = pool(&db, calm().max(1).tx_timeout(Duration::from_secs(1)));
    let mut tx = pool.handle().begin().await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");

    let sleep = sqlx::query("select pg_sleep(60)").execute(&mut tx).await;
    let error = Error::from(sleep.expect_err("a timeout"));
    assert!(matches!(&error, Error::Deadline(error) if error.is_transaction()), "{error:?}");
    let error = tx.commit().await.expect_err("the deadline has passed");
    assert!(matches!(&error, Error::Deadline(error) if error.is_transaction()), "{error:?}");

    db.until_quiet().await;
    assert_eq!(rows(&db).await, 0);
}

#[db_testkit::test]
async fn the_server_ends_a_transaction_that_idles_ten_seconds_after_its_limit(db: TestDb) {
    let pool = pool(&db, calm().tx_timeout(Duration::from_millis(45_500)));

    assert_eq!(setting(&pool, "idle_in_transaction_session_timeout").await, "55500");
    sqlx::query("discard all").execute(pool.handle()).await.expect("discarded");
    let shown: String = sqlx::query_scalar("show idle_in_transaction_session_timeout")
        .fetch_one(pool.handle())
        .await
        .expect("a setting");
    assert_eq!(shown, "55500ms", "after DISCARD ALL");
}

#[db_testkit::test]
async fn each_statement_is_logged_with_its_outcome_and_without_values(db: TestDb) {
    table(&db).await;
    let events = Events::of("logged");
    let options = calm().name("logged").slow_statement(NEVER);
    let pool = pool(&db, options);
    let (line, handle) = (line!(), pool.handle());

    sqlx::query("insert into t select n from generate_series(1, 3) n")
        .execute(handle.clone())
        .await
        .expect("three");
    sqlx::query("select n, 'hunter3' from t where $1 <> 'hunter4'")
        .bind("hunter2")
        .fetch_all(handle.clone())
        .await
        .expect("three");
    sqlx::query("select ($1::text)::int").bind("hunter2").execute(handle).await.expect_err("no number");

    let lines = events.all();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line.message.as_str(), line.fields["rows"].as_str(), line.fields["affected"].as_str()))
        .collect();
    let place = format!("(crates/db-core/tests/it/options.rs:{line})");
    let short = |text: &str| format!("{text} {place}");
    assert_eq!(
        told,
        [
            (short("insert into t select n from generate_series(1, 3) n").as_str(), "0", "3"),
            (short("select n, '…' from t where $1 <> '…'").as_str(), "3", "3"),
            (short("select ($1::text)::int").as_str(), "0", "0"),
        ]
    );
    for line in &lines {
        assert_eq!((line.level, line.target.as_str()), (Level::DEBUG, "db_core::statement"));
        assert_eq!(line.fields["pool"], "logged");
        assert!(line.fields["ms"].parse::<f64>().is_ok_and(|ms| ms > 0.0), "{line:?}");
        assert!(!line.text().contains("hunter"), "{line:?}");
    }
    assert_eq!(lines[2].fields["error"], "a value does not fit");
}

#[db_testkit::test]
async fn only_slow_statements_are_logged_as_warnings(db: TestDb) {
    let events = Events::of("slow");
    let slow_statement = Duration::from_millis(400);
    let pool = pool(&db, calm().name("slow").slow_statement(slow_statement));
    pool.ping().await.expect("connected");

    sqlx::query("select 1, pg_sleep(0.4)").execute(pool.handle()).await.expect("slow");

    let lines = events.with("pg_sleep");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].level, Level::WARN);
    assert!(lines[0].message.starts_with("slow: select 1, pg_sleep(0.4) ("), "{lines:?}");
    assert_eq!(pool.stats().totals.slow, 1);
}

#[db_testkit::test]
async fn without_a_tracker_there_are_no_holders_and_no_leaks(db: TestDb) {
    let events = Events::of("untracked");
    let options = calm().name("untracked").leak_after(Duration::ZERO).max(1);
    let untracked =
        pool(&db, options.clone().tracker(Tracking::Off).acquire_timeout(Duration::from_millis(300)));
    let tracked = pool(&db, options.name("tracked"));
    let _held = untracked.handle().acquire().await.expect("a connection");
    let _leaks = tracked.handle().acquire().await.expect("a connection");
    until("the tracked checkout leaks", async || tracked.stats().totals.leaked == 1).await;

    let error = untracked.handle().acquire().await.expect_err("no second connection");

    assert!(untracked.holders().is_empty());
    assert!(error.oldest_holder().is_none() && error.holds_one_taken_at().is_none(), "{error}");
    let totals = untracked.stats().totals;
    assert_eq!((totals.leaked, totals.nested_acquires), (0, 0));
    assert!(events.with("held for too long").is_empty());
}

#[db_testkit::test]
async fn stacks_are_captured_with_tracking_stacks(db: TestDb) {
    let stacks = pool(&db, calm().tracker(Tracking::Stacks));
    let lines = pool(&db, calm().tracker(Tracking::Lines));
    let _held = [stacks.handle().acquire().await, lines.handle().acquire().await];

    let holder = &stacks.holders()[0];
    let stack = holder.stack.as_ref().expect("a stack").to_string();
    assert!(stack.contains("stacks_are_captured_with_tracking_stacks"), "{stack}");
    assert!(lines.holders()[0].stack.is_none());
}

#[db_testkit::test]
async fn a_connection_that_is_held_for_too_long_is_logged_and_counted_once(db: TestDb) {
    let events = Events::of("leaking");
    let leak_after = Duration::from_millis(50);
    let pool = pool(&db, calm().name("leaking").leak_after(leak_after));
    let (line, handle) = (line!(), pool.handle());
    let mut held = handle.acquire().await.expect("a connection");
    sqlx::query("select 1").execute(&mut held).await.expect("used");

    until("the leak is logged", async || !events.with("held for too long").is_empty()).await;
    assert!(pool.holders()[0].leaked);
    // A later leak, so that the keeper has checked the first once more.
    let later = pool.handle().acquire().await.expect("a connection");
    until("both leak", async || events.with("held for too long").len() == 2).await;
    drop((held, later));

    let named = &events.with("held for too long")[0];
    assert_eq!(named.level, Level::WARN);
    assert!(named.message.contains(&format!("options.rs:{line} for ")), "{named:?}");
    let back = events.with("too long was returned");
    assert_eq!((back.len(), back[0].level), (2, Level::INFO));
    assert!(back[0].message.ends_with(&format!("options.rs:{line}")), "{back:?}");
    let totals = pool.stats().totals;
    assert_eq!((totals.leaked, totals.leaks_returned), (2, 2));
}

#[db_testkit::test]
async fn a_handle_may_have_its_own_leak_threshold(db: TestDb) {
    let strict = pool(&db, calm().leak_after(Duration::from_millis(50)));
    let _long = strict.handle().leak_after(NEVER).acquire().await.expect("a connection");
    let _leaks = strict.handle().acquire().await.expect("a connection");
    until("the other checkout leaks", async || strict.stats().totals.leaked == 1).await;
    assert!(!strict.holders()[0].leaked, "{:?}", strict.holders());

    let lax = pool(&db, calm());
    let _held = lax.handle().acquire().await.expect("a connection");
    let _short = lax.handle().leak_after(Duration::from_millis(50)).acquire().await.expect("a connection");
    until("the short checkout leaks", async || lax.stats().totals.leaked == 1).await;
    assert!(!lax.holders()[0].leaked && lax.holders()[1].leaked, "{:?}", lax.holders());
}

#[db_testkit::test]
async fn sqlx_reserve_splits_the_pool_so_that_neither_part_blocks_the_other(db: TestDb) {
    let acquire_timeout = Duration::from_millis(500);
    let pool = pool(&db, calm().max(5).sqlx_reserve(3).acquire_timeout(acquire_timeout));
    // Before the first call of `sqlx()`, all connections are the pool's.
    assert_eq!(open(&pool, 5).await.len(), 5);
    assert_eq!(pool.sqlx().options().get_max_connections(), 3);
    assert_eq!(pool.stats().idle, 2, "idle connections are closed at once");
    db.until_sessions("two sessions are left", |all| of_connections(all) == 2).await;

    let theirs = [pool.sqlx().acquire().await, pool.sqlx().acquire().await, pool.sqlx().acquire().await];
    assert!(
        matches!(pool.sqlx().acquire().await, Err(sqlx::Error::PoolTimedOut)),
        "three connections are reserved for sqlx"
    );
    let ours = [pool.handle().acquire().await, pool.handle().acquire().await];
    pool.handle().acquire().await.expect_err("two connections are the pool's");

    assert!(theirs.iter().all(Result::is_ok), "{theirs:?}");
    assert!(ours.iter().all(Result::is_ok), "{ours:?}");
    assert_eq!(of_connections(&db.sessions().await.expect("the sessions")), 5);
    assert!(pool.max_sessions() >= 5);
    drop(theirs);
    sqlx::query("select 1")
        .execute(pool.sqlx())
        .await
        .expect("an answer while all other connections are in use");
}

#[db_testkit::test]
async fn a_pool_of_one_grows_to_two_for_sqlx(db: TestDb) {
    let pool = pool(&db, calm().max(1));
    let _theirs = pool.sqlx().acquire().await.expect("theirs");
    let _ours = pool.handle().acquire().await.expect("ours");

    assert_eq!(pool.sqlx().options().get_max_connections(), 1);
    assert!(pool.max_sessions() >= 2);
}
