//! Cancel requests that are slow, many, lost, or no longer wanted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use db_core::{Class, Config, Conn, Error, Pool};
use db_testkit::{Proxy, Session, TestDb, TestServer, until};
use futures_util::future::join_all;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::ConnectOptions;
use sqlx::error::DatabaseError;
use tokio::runtime::Runtime;

use super::relay::{Passed, READY, Relay, SYNC};
use super::stage::{
    CONTROL, Gate, LONG, NAME, ask, ends, fill, hasty, options, pool, stage, until_control, until_quiet,
};

fn is_control(session: &Session) -> bool {
    session.application_name == CONTROL
}

/// Whether the session runs a statement for the pool.
fn is_at_work(session: &Session) -> bool {
    session.application_name == NAME && session.is_running()
}

/// Sends a statement that waits at the gate, and drops its future.
async fn abandon(conn: &mut Conn, gate: &Gate<'_>) {
    let statement = sqlx::query(Gate::WAIT).execute(conn);
    tokio::select! {
        _ = statement => panic!("the gate is shut"),
        _ = gate.until_waiting(1) => {}
    }
}

/// Abandons two statements of a connection. The first is cancelled, so the control connection is open for the second.
async fn abandon_twice(conn: &mut Conn, gate: &Gate<'_>) {
    abandon(conn, gate).await;
    ends(sqlx::query("select 1").execute(&mut *conn)).await.expect("an answer");
    abandon(conn, gate).await;
}

/// A server of the test's own with a database.
async fn own_server(max_connections: &str) -> (TestServer, TestDb) {
    let builder = db_embedded::Server::throwaway().setting("max_connections", max_connections);
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.empty().await.expect("a database");
    (server, db)
}

#[db_testkit::test]
async fn a_cancel_request_whose_future_is_dropped_hits_no_later_statement(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let relay = Relay::before(&proxy).await;
    let pool = pool(&relay.url(), options(1));
    // Several runs: whether a repair reads the end of the statement before it sends its own cancel depends on 2 ms.
    for _ in 0..8 {
        let mut conn = ends(pool.handle().acquire()).await.expect("a connection");
        let gate = Gate::shut(&db).await;
        abandon_twice(&mut conn, &gate).await;
        relay.hold();
        // The next statement requests a cancel of the first, and is dropped while the request is on its way.
        {
            let next = sqlx::query("select 2").execute(&mut conn);
            tokio::select! {
                _ = next => panic!("the first statement is at the gate"),
                () = until("the request is on its way", async || relay.holds()) => {}
            }
        }
        gate.open().await;
        db.until_sessions("the statement has ended", |all| !all.iter().any(is_at_work)).await;
        drop(conn);

        let gate = Gate::shut(&db).await;
        let next = ends(sqlx::query(Gate::WAIT).execute(pool.handle()));
        let answers = relay.control_answers();
        let (next, ()) = tokio::join!(next, async {
            gate.until_waiting(1).await;
            relay.release();
            until("the request has arrived", async || relay.control_answers() > answers).await;
            gate.open().await;
        });

        next.map_err(Error::from).expect("the late cancel does not hit this statement");
        until_quiet(&pool).await;
        ask(&pool, 1).await.expect("an answer");
    }
}

#[db_testkit::test]
async fn a_request_that_is_never_answered_ends_its_session(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let relay = Relay::before(&proxy).await;
    let pool = pool(&relay.url(), options(1));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let pid = conn.pid();
    let gate = Gate::shut(&db).await;
    abandon_twice(&mut conn, &gate).await;
    relay.hold();

    drop(conn);

    until("the repair has failed", async || pool.stats().totals.repair_failed == 1).await;
    relay.release();
    db.until_sessions("the session has ended", |all| all.iter().all(|it| it.pid != pid)).await;
    gate.open().await;
    until_quiet(&pool).await;
    ask(&pool, 1).await.expect("an answer");
}

#[db_testkit::test]
async fn after_a_cancel_one_round_trip_comes_before_the_next_statement(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let relay = Relay::before(&proxy).await;
    let pool = pool(&relay.url(), options(1));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let gate = Gate::shut(&db).await;
    abandon_twice(&mut conn, &gate).await;
    let answers = relay.control_answers();
    relay.hold();

    let next = ends(sqlx::query("select 1").execute(&mut conn));
    let mut seen = 0;
    let (next, ()) = tokio::join!(next, async {
        // The request is sent while the statement runs, and arrives after its end.
        until("the request is on its way", async || relay.holds()).await;
        gate.open().await;
        db.until_sessions("the statement has ended", |all| !all.iter().any(is_at_work)).await;
        seen = relay.passed().len();
        relay.release();
    });

    next.expect("its own answer");
    assert!(relay.control_answers() > answers, "the request was answered");
    let after: Vec<_> = relay.passed()[seen..]
        .iter()
        .copied()
        .skip_while(|passed| *passed != Passed::Control(READY))
        .filter(|passed| matches!(passed, Passed::Up(_)))
        .collect();
    assert_eq!(after[0], Passed::Up(SYNC), "{after:?}");
}

#[db_testkit::test]
async fn the_rest_of_a_stream_in_a_transaction_is_read_and_not_cancelled(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(1));
    for begins in ["by the pool", "by raw SQL"] {
        for run in 0..50 {
            let fails = |error: sqlx::Error| panic!("{begins}, run {run}: {}", Error::from(error));
            let rows = "select n, repeat('x', 100) from generate_series(1, 10000) n";
            if begins == "by raw SQL" {
                let mut conn = pool.handle().acquire().await.expect("a connection");
                sqlx::raw_sql("begin").execute(&mut conn).await.expect("begun");
                sqlx::query(rows).fetch(&mut conn).try_next().await.expect("a row");
                sqlx::query("select 1").execute(&mut conn).await.map_or_else(fails, drop);
                sqlx::raw_sql("commit").execute(&mut conn).await.map_or_else(fails, drop);
            } else {
                let mut tx = pool.handle().begin().await.expect("begun");
                sqlx::query(rows).fetch(&mut tx).try_next().await.expect("a row");
                sqlx::query("select 1").execute(&mut tx).await.map_or_else(fails, drop);
                tx.commit().await.expect("committed");
            }
        }
    }
    assert_eq!(pool.stats().totals.cancelled, 0);
}

#[db_testkit::test]
async fn an_abandoned_statement_in_a_transaction_is_cancelled_after_a_while_and_the_error_says_so(
    db: TestDb,
) {
    let (_proxy, pool) = stage(&db, options(1));
    for begins in ["by the pool", "by raw SQL"] {
        let gate = Gate::shut(&db).await;
        let error = if begins == "by raw SQL" {
            let mut conn = pool.handle().acquire().await.expect("a connection");
            sqlx::raw_sql("begin").execute(&mut conn).await.expect("begun");
            abandon(&mut conn, &gate).await;
            ends(sqlx::query("select 1").execute(&mut conn)).await
        } else {
            let mut tx = pool.handle().begin().await.expect("begun");
            {
                let statement = sqlx::query(Gate::WAIT).execute(&mut tx);
                tokio::select! {
                    _ = statement => panic!("the gate is shut"),
                    _ = gate.until_waiting(1) => {}
                }
            }
            let error = ends(sqlx::query("select 1").execute(&mut tx)).await;
            assert!(matches!(tx.commit().await, Err(Error::Aborted)));
            error
        };

        let error = Error::from(error.expect_err("the transaction has failed"));
        assert_eq!(error.class(), Class::TimedOut, "{begins}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("abandoned statement") && text.contains("cancelled"), "{begins}: {text}");
        gate.open().await;
    }
    assert_eq!(pool.stats().totals.cancelled, 2);
}

#[db_testkit::test]
async fn a_rollback_does_not_wait_for_an_abandoned_statement(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(1));
    let gate = Gate::shut(&db).await;
    let mut tx = pool.handle().begin().await.expect("begun");
    {
        let mut savepoint = tx.savepoint().await.expect("a savepoint");
        let statement = sqlx::query(Gate::WAIT).execute(&mut savepoint);
        tokio::select! {
            _ = statement => panic!("the gate is shut"),
            _ = gate.until_waiting(1) => {}
        }
    }
    ends(sqlx::query("select 1").execute(&mut tx))
        .await
        .expect("an answer, since only the savepoint is undone");
    {
        let statement = sqlx::query(Gate::WAIT).execute(&mut tx);
        tokio::select! {
            _ = statement => panic!("the gate is shut"),
            _ = gate.until_waiting(1) => {}
        }
    }

    ends(tx.rollback()).await.expect("rolled back");

    // The gate was shut all the time, so both statements were cancelled.
    assert_eq!(pool.stats().totals.cancelled, 2);
    gate.open().await;
}

/// The pool's sessions without the control connection.
async fn pids(db: &TestDb) -> BTreeSet<i32> {
    let sessions = db.sessions().await.expect("sessions");
    sessions.iter().filter(|it| it.application_name == NAME).map(|it| it.pid).collect()
}

/// Opens the maximum of connections, one after the other: all at once would take a busy machine too long.
async fn open_one_by_one(pool: &Pool) -> BTreeSet<i32> {
    let mut conns = Vec::new();
    for _ in 0..pool.limits().max {
        conns.push(ends(pool.handle().acquire()).await.expect("a connection"));
    }
    conns.iter().map(|conn| conn.pid()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_statements_that_time_out_together_are_cancelled_together() {
    let (_server, db) = own_server("100").await;
    let (proxy, pool) = stage(&db, hasty(50, LONG, Duration::from_secs(4)));
    let before = open_one_by_one(&pool).await;
    proxy.latency(Duration::from_millis(10));
    let begun = Instant::now();
    let sleeps = (0..50).map(|_| sqlx::query("select pg_sleep(60)").execute(pool.handle()));

    let (ended, first) = tokio::join!(ends(join_all(sleeps)), async {
        db.until_sessions("all statements run", |all| all.iter().filter(|it| is_at_work(it)).count() == 50)
            .await;
        db.until_sessions("some statements time out", |all| {
            all.iter().filter(|it| is_at_work(it)).count() < 50
        })
        .await;
        Instant::now()
    });

    for ended in ended {
        assert_eq!(Error::from(ended.expect_err("no answer in time")).class(), Class::TimedOut);
    }
    db.until_sessions("no statement runs", |all| !all.iter().any(is_at_work)).await;
    let none_runs = first.elapsed();
    until_quiet(&pool).await;
    let settled = first.elapsed();
    println!("from the first of 50: none runs after {none_runs:.0?}, the pool is quiet after {settled:.0?}");
    println!("since they were sent: {:.1?}", begun.elapsed());
    let kept = pids(&db).await.intersection(&before).count();
    let stats = pool.stats();
    assert!(kept >= 45, "{kept} of 50 are kept, {stats:?}");
    assert!(stats.totals.cancelled >= 45, "{stats:?}");
    ask(&pool, 1).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_statements_are_cancelled_together_when_their_pool_closes() {
    let (_server, db) = own_server("100").await;
    let (proxy, pool) = stage(&db, options(50));
    open_one_by_one(&pool).await;
    proxy.latency(Duration::from_millis(10));
    let sleeps = (0..50).map(|_| sqlx::query("select pg_sleep(60)").execute(pool.handle()));

    let (ended, closed) = tokio::join!(ends(join_all(sleeps)), async {
        db.until_sessions("all statements run", |all| all.iter().filter(|it| is_at_work(it)).count() == 50)
            .await;
        ends(pool.close(Duration::from_secs(5))).await
    });

    let running = db.sessions().await.expect("sessions").into_iter().filter(is_at_work).count();
    assert_eq!(running, 0);
    assert!(closed.in_time && closed.aborted.len() == 50, "{closed:?}");
    let cancelled = ended.into_iter().filter(|ended| {
        let error = ended.as_ref().expect_err("aborted");
        error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("57014")
    });
    let cancelled = cancelled.count();
    assert!(cancelled >= 45, "{cancelled} were cancelled, the others' sessions were ended");
    db.until_sessions("no session is left", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_cancelled_although_the_server_accepts_no_further_session() {
    let (_server, db) = own_server("20").await;
    let pool = pool(&db.url(), options(5));
    let before = fill(&pool).await;
    until_control(&db).await;
    let gate = Gate::shut(&db).await;
    let statements: Vec<_> = (0..5)
        .map(|_| {
            let handle = pool.handle();
            tokio::spawn(async move { sqlx::query(Gate::WAIT).execute(handle).await })
        })
        .collect();
    gate.until_waiting(5).await;
    let mut others = Vec::new();
    let full = loop {
        match db.options().application_name("other").connect().await {
            Ok(other) => others.push(other),
            Err(error) => break error,
        }
    };
    assert_eq!(full.as_database_error().and_then(DatabaseError::code).as_deref(), Some("53300"));

    for statement in statements {
        statement.abort();
    }

    until("all statements are cancelled, and their connections kept", async || {
        pool.stats().totals.repaired == 5
    })
    .await;
    ask(&pool, 1).await.expect("an answer");
    assert_eq!(pool.stats().totals.cancelled, 5);
    drop(others);
    assert_eq!(fill(&pool).await, before);
    gate.open().await;
}

#[db_testkit::test]
async fn the_control_connection_is_opened_with_the_first_connection_and_closed_with_the_pool(db: TestDb) {
    let (_proxy, unused) = stage(&db, options(2));
    let (_proxy, used) = stage(&db, options(2));
    let conn = used.handle().acquire().await.expect("a connection");

    let sessions = db.until_sessions("there are two sessions", |all| all.len() == 2).await;
    let names: Vec<_> = sessions.iter().map(|it| it.application_name.as_str()).collect();
    assert_eq!(names, [NAME, CONTROL], "no session of the unused pool");
    assert_eq!(used.max_sessions(), 2 + 4 + 1);

    drop((conn, unused));
    assert!(ends(used.close(LONG)).await.is_clean());
    db.until_sessions("no session is left", <[_]>::is_empty).await;
    let (_proxy, dropped) = stage(&db, options(2));
    fill(&dropped).await;
    drop(dropped);
    db.until_sessions("no session is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn the_control_connection_is_exempt_from_idle_session_timeout(db: TestDb) {
    sqlx::raw_sql("do $$ begin execute format('alter database %I set idle_session_timeout = 300', current_database()); end $$")
        .execute(&db.pool())
        .await
        .expect("a setting");
    let pool = pool(&db.url(), options(1));
    let conn = pool.handle().acquire().await.expect("a connection");
    until_control(&db).await;
    let _other = db.options().application_name("other").connect().await.expect("another connection");
    db.until_sessions("the other session exists", |all| all.iter().any(|it| it.application_name == "other"))
        .await;

    let left = db.until_sessions("the other session has idled for too long", |all| {
        !all.iter().any(|it| it.application_name == "other")
    });

    assert!(left.await.iter().any(is_control), "the control session, which began before the other");
    drop(conn);
}

#[db_testkit::test]
async fn a_lost_control_connection_is_opened_again(db: TestDb) {
    let (proxy, pool) = stage(&db, options(2));
    let before = fill(&pool).await;
    let control = until_control(&db).await;
    sqlx::query("select pg_terminate_backend($1)").bind(control).execute(&db.pool()).await.expect("ended");
    db.until_sessions("the control session is gone", |all| all.iter().all(|it| it.pid != control)).await;
    let gate = Gate::shut(&db).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    abandon(&mut conn, &gate).await;

    drop(conn);

    until_quiet(&pool).await;
    let running = db.sessions().await.expect("sessions").into_iter().filter(is_at_work).count();
    assert_eq!(running, 0, "{:?}", pool.stats());
    assert!(fill(&pool).await.intersection(&before).count() >= 1);
    drop(proxy);
}

#[db_testkit::test]
async fn a_replaced_control_connection_leaves_no_session_behind(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let frozen = until_control(&db).await;
    let gate = Gate::shut(&db).await;
    abandon(&mut conn, &gate).await;
    proxy.freeze_open();

    drop(conn);

    // The server receives nothing on the frozen links.
    let is_replaced = |all: &[Session]| {
        all.iter().all(|it| it.pid != frozen && !is_at_work(it)) && all.iter().any(is_control)
    };
    db.until_sessions("the control session was replaced", is_replaced).await;
    gate.open().await;
}

#[db_testkit::test]
async fn requests_whose_answer_was_lost_leave_no_running_statement(db: TestDb) {
    let (proxy, pool) = stage(&db, options(4));
    let before = fill(&pool).await;
    let gate = Gate::shut(&db).await;
    let mut conns = Vec::new();
    for _ in 0..4 {
        conns.push(pool.handle().acquire().await.expect("a connection"));
    }
    let waits = conns.iter_mut().map(|conn| sqlx::query(Gate::WAIT).execute(conn));
    tokio::select! {
        _ = join_all(waits) => panic!("the gate is shut"),
        _ = gate.until_waiting(4) => {}
    }
    // The server's next message is the answer to the request, or the last message of a statement.
    proxy.cut_after(0);

    drop(conns);

    until_quiet(&pool).await;
    db.until_sessions("no statement runs", |all| !all.iter().any(is_at_work)).await;
    gate.open().await;
    for number in 0..8 {
        ask(&pool, number).await.expect("an answer");
    }
    drop(before);
}

#[db_testkit::test]
async fn abandoned_statements_are_cancelled_although_the_pool_was_dropped(db: TestDb) {
    let (proxy, pool) = stage(&db, options(8));
    proxy.latency(Duration::from_millis(10));
    fill(&pool).await;
    let gate = Gate::shut(&db).await;
    let statements: Vec<_> = (0..8)
        .map(|_| {
            let handle = pool.handle();
            tokio::spawn(async move { sqlx::query(Gate::WAIT).execute(handle).await })
        })
        .collect();
    gate.until_waiting(8).await;

    drop(pool);
    for statement in statements {
        statement.abort();
    }

    db.until_sessions("no session is left", <[_]>::is_empty).await;
    gate.open().await;
}

#[db_testkit::test]
async fn after_the_pools_runtime_has_ended_no_call_waits_for_a_cancel(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let gate = Gate::shut(&db).await;
    let (pool, conn, _proxy) = tokio::task::spawn_blocking(move || {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let address = Config::from_url(&proxy.url()).expect("an address");
            let pool = Pool::new(&address, options(2).statement_timeout(LONG));
            let mut conn = pool.handle().acquire().await.expect("a connection");
            assert!(sqlx::query(Gate::WAIT).execute(&mut conn).now_or_never().is_none());
            // Or the runtime may still cancel the statement, and its answer be read without a runtime.
            proxy.freeze();
            (pool, conn, proxy)
        })
    })
    .await
    .expect("no panic");
    let mut conn = conn;

    let next = ends(sqlx::query("select 1").execute(&mut conn)).await;

    assert!(next.is_err(), "the link ended with its runtime");
    drop(conn);
    ends(pool.close(Duration::from_secs(1))).await;
    gate.open().await;
}
