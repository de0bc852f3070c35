//! Requests to cancel that are slow, many, lost, or not wanted any more.

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
    CONTROL, Gate, LONG, NAME, ask, ends, fill, hasty, options, pool, stage, until_at_rest, until_control,
};

fn is_control(session: &Session) -> bool {
    session.application_name == CONTROL
}

/// Whether it runs a statement for the pool.
fn is_at_work(session: &Session) -> bool {
    session.application_name == NAME && session.is_running()
}

/// Sends a statement that waits at the gate, and drops its future.
async fn cut_off(conn: &mut Conn, gate: &Gate<'_>) {
    let statement = sqlx::query(Gate::WAIT).execute(conn);
    tokio::select! {
        _ = statement => panic!("the gate is shut"),
        _ = gate.until_waiting(1) => {}
    }
}

/// Cuts off two statements of a connection. The first is cancelled, so the connection that cancels is there for the second.
async fn cut_off_again(conn: &mut Conn, gate: &Gate<'_>) {
    cut_off(conn, gate).await;
    ends(sqlx::query("select 1").execute(&mut *conn)).await.expect("an answer");
    cut_off(conn, gate).await;
}

/// A server of the test's own, and a database there.
async fn own_server(max_connections: &str) -> (TestServer, TestDb) {
    let builder = db_embedded::Server::throwaway().setting("max_connections", max_connections);
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.empty().await.expect("a database");
    (server, db)
}

#[db_testkit::test]
async fn a_request_that_is_under_way_when_its_future_is_dropped_hits_nobody_else(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let relay = Relay::before(&proxy).await;
    let pool = pool(&relay.url(), options(1));
    // Several times: whether a repair meets the end of the statement before it asks for a cancel itself is a matter of 2 ms.
    for _ in 0..8 {
        let mut conn = ends(pool.handle().acquire()).await.expect("a connection");
        let gate = Gate::shut(&db).await;
        cut_off_again(&mut conn, &gate).await;
        relay.hold();
        // The next one asks for the first one to be cancelled, and is dropped while the request is on its way.
        {
            let next = sqlx::query("select 2").execute(&mut conn);
            tokio::select! {
                _ = next => panic!("the first one is at the gate"),
                () = until("the request is on its way", async || relay.holds()) => {}
            }
        }
        gate.open().await;
        db.until_sessions("the statement is over", |all| !all.iter().any(is_at_work)).await;
        drop(conn);

        let gate = Gate::shut(&db).await;
        let strangers = ends(sqlx::query(Gate::WAIT).execute(pool.handle()));
        let answers = relay.control_answers();
        let (strangers, ()) = tokio::join!(strangers, async {
            gate.until_waiting(1).await;
            relay.release();
            until("the request has got there", async || relay.control_answers() > answers).await;
            gate.open().await;
        });

        strangers.map_err(Error::from).expect("nobody wanted it to be cancelled");
        until_at_rest(&pool).await;
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
    cut_off_again(&mut conn, &gate).await;
    relay.hold();

    drop(conn);

    until("its repair was given up", async || pool.stats().totals.repair_failed == 1).await;
    relay.release();
    db.until_sessions("it has ended", |all| all.iter().all(|it| it.pid != pid)).await;
    gate.open().await;
    until_at_rest(&pool).await;
    ask(&pool, 1).await.expect("an answer");
}

#[db_testkit::test]
async fn after_a_cancel_one_round_trip_comes_before_the_next_statement(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let relay = Relay::before(&proxy).await;
    let pool = pool(&relay.url(), options(1));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let gate = Gate::shut(&db).await;
    cut_off_again(&mut conn, &gate).await;
    let answers = relay.control_answers();
    relay.hold();

    let next = ends(sqlx::query("select 1").execute(&mut conn));
    let mut seen = 0;
    let (next, ()) = tokio::join!(next, async {
        // It is asked for while the statement runs, and gets there after its end.
        until("the request is on its way", async || relay.holds()).await;
        gate.open().await;
        db.until_sessions("the statement is over", |all| !all.iter().any(is_at_work)).await;
        seen = relay.passed().len();
        relay.release();
    });

    next.expect("its own answer");
    assert!(relay.control_answers() > answers, "it was answered");
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
    for begins in ["by the layer", "by text"] {
        for run in 0..50 {
            let fails = |error: sqlx::Error| panic!("{begins}, run {run}: {}", Error::from(error));
            let rows = "select n, repeat('x', 100) from generate_series(1, 10000) n";
            if begins == "by text" {
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
async fn a_statement_that_goes_on_in_a_transaction_is_cancelled_in_the_end_and_that_is_said(db: TestDb) {
    let (_proxy, pool) = stage(&db, options(1));
    for begins in ["by the layer", "by text"] {
        let gate = Gate::shut(&db).await;
        let error = if begins == "by text" {
            let mut conn = pool.handle().acquire().await.expect("a connection");
            sqlx::raw_sql("begin").execute(&mut conn).await.expect("begun");
            cut_off(&mut conn, &gate).await;
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
        assert!(text.contains("was cut off") && text.contains("cancelled"), "{begins}: {text}");
        gate.open().await;
    }
    assert_eq!(pool.stats().totals.cancelled, 2);
}

#[db_testkit::test]
async fn what_is_rolled_back_is_not_waited_for(db: TestDb) {
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
    ends(sqlx::query("select 1").execute(&mut tx)).await.expect("only the savepoint is undone");
    {
        let statement = sqlx::query(Gate::WAIT).execute(&mut tx);
        tokio::select! {
            _ = statement => panic!("the gate is shut"),
            _ = gate.until_waiting(1) => {}
        }
    }

    ends(tx.rollback()).await.expect("rolled back");

    // The gate was shut all the time.
    assert_eq!(pool.stats().totals.cancelled, 2);
    gate.open().await;
}

/// Says which sessions the pool has now, the one that cancels left out.
async fn pids(db: &TestDb) -> BTreeSet<i32> {
    let sessions = db.sessions().await.expect("sessions");
    sessions.iter().filter(|it| it.application_name == NAME).map(|it| it.pid).collect()
}

/// Opens as many connections as there may be: all at the same time, that takes a busy machine too long.
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
        db.until_sessions("all run", |all| all.iter().filter(|it| is_at_work(it)).count() == 50).await;
        db.until_sessions("some time out", |all| all.iter().filter(|it| is_at_work(it)).count() < 50).await;
        Instant::now()
    });

    for ended in ended {
        assert_eq!(Error::from(ended.expect_err("too late")).class(), Class::TimedOut);
    }
    db.until_sessions("none runs", |all| !all.iter().any(is_at_work)).await;
    let none_runs = first.elapsed();
    until_at_rest(&pool).await;
    let at_rest = first.elapsed();
    println!("from the first of 50: none runs after {none_runs:.0?}, all at rest after {at_rest:.0?}");
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
        db.until_sessions("all run", |all| all.iter().filter(|it| is_at_work(it)).count() == 50).await;
        ends(pool.close(Duration::from_secs(5))).await
    });

    let running = db.sessions().await.expect("sessions").into_iter().filter(is_at_work).count();
    assert_eq!(running, 0);
    assert!(closed.in_time && closed.cut.len() == 50, "{closed:?}");
    let cancelled = ended.into_iter().filter(|ended| {
        let error = ended.as_ref().expect_err("cut off");
        error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("57014")
    });
    let cancelled = cancelled.count();
    assert!(cancelled >= 45, "{cancelled} were cancelled, the others' sessions were ended");
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_that_cancels_is_there_when_no_further_session_is_to_be_had() {
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

    until("they are cancelled, and their connections kept", async || pool.stats().totals.repaired == 5).await;
    ask(&pool, 1).await.expect("an answer");
    assert_eq!(pool.stats().totals.cancelled, 5);
    drop(others);
    assert_eq!(fill(&pool).await, before);
    gate.open().await;
}

#[db_testkit::test]
async fn the_connection_that_cancels_is_opened_with_the_first_one_and_closed_with_the_pool(db: TestDb) {
    let (_proxy, unused) = stage(&db, options(2));
    let (_proxy, used) = stage(&db, options(2));
    let conn = used.handle().acquire().await.expect("a connection");

    let sessions = db.until_sessions("there are two", |all| all.len() == 2).await;
    let names: Vec<_> = sessions.iter().map(|it| it.application_name.as_str()).collect();
    assert_eq!(names, [NAME, CONTROL], "and none of the other pool");
    assert_eq!(used.max_sessions(), 2 + 4 + 1);

    drop((conn, unused));
    assert!(ends(used.close(LONG)).await.is_clean());
    db.until_sessions("none is left", <[_]>::is_empty).await;
    let (_proxy, dropped) = stage(&db, options(2));
    fill(&dropped).await;
    drop(dropped);
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn the_connection_that_cancels_may_idle_for_as_long_as_it_likes(db: TestDb) {
    sqlx::raw_sql("do $$ begin execute format('alter database %I set idle_session_timeout = 300', current_database()); end $$")
        .execute(&db.pool())
        .await
        .expect("a setting");
    let pool = pool(&db.url(), options(1));
    let conn = pool.handle().acquire().await.expect("a connection");
    until_control(&db).await;
    let _other = db.options().application_name("other").connect().await.expect("it connects");
    db.until_sessions("it is there", |all| all.iter().any(|it| it.application_name == "other")).await;

    let left = db
        .until_sessions("it idled for too long", |all| !all.iter().any(|it| it.application_name == "other"));

    assert!(left.await.iter().any(is_control), "it began before the other one");
    drop(conn);
}

#[db_testkit::test]
async fn the_connection_that_cancels_is_made_again_when_it_was_lost(db: TestDb) {
    let (proxy, pool) = stage(&db, options(2));
    let before = fill(&pool).await;
    let control = until_control(&db).await;
    sqlx::query("select pg_terminate_backend($1)").bind(control).execute(&db.pool()).await.expect("ended");
    db.until_sessions("it is gone", |all| all.iter().all(|it| it.pid != control)).await;
    let gate = Gate::shut(&db).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    cut_off(&mut conn, &gate).await;

    drop(conn);

    until_at_rest(&pool).await;
    let gone = db.sessions().await.expect("sessions").into_iter().filter(is_at_work).count();
    assert_eq!(gone, 0, "{:?}", pool.stats());
    assert!(fill(&pool).await.intersection(&before).count() >= 1);
    drop(proxy);
}

#[db_testkit::test]
async fn the_connection_that_cancels_leaves_no_session_behind_when_it_is_replaced(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let frozen = until_control(&db).await;
    let gate = Gate::shut(&db).await;
    cut_off(&mut conn, &gate).await;
    proxy.freeze_open();

    drop(conn);

    // The server hears nothing on the frozen links.
    let is_replaced = |all: &[Session]| {
        all.iter().all(|it| it.pid != frozen && !is_at_work(it)) && all.iter().any(is_control)
    };
    db.until_sessions("there is another one instead", is_replaced).await;
    gate.open().await;
}

#[db_testkit::test]
async fn requests_whose_answer_was_lost_leave_no_statement_and_no_session_to_others(db: TestDb) {
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
    // The next word from the server is the answer to the request, or a statement's last one.
    proxy.cut_after(0);

    drop(conns);

    until_at_rest(&pool).await;
    db.until_sessions("none is at work", |all| !all.iter().any(is_at_work)).await;
    gate.open().await;
    for number in 0..8 {
        ask(&pool, number).await.expect("an answer");
    }
    drop(before);
}

#[db_testkit::test]
async fn what_is_cut_off_is_cancelled_though_the_pool_has_no_handle_any_more(db: TestDb) {
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
async fn where_the_runtime_of_a_pool_has_ended_nobody_waits_for_a_cancel(db: TestDb) {
    let url = db.url();
    let gate = Gate::shut(&db).await;
    let (pool, conn) = tokio::task::spawn_blocking(move || {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let pool =
                Pool::new(&Config::from_url(&url).expect("an address"), options(2).statement_timeout(LONG));
            let mut conn = pool.handle().acquire().await.expect("a connection");
            assert!(sqlx::query(Gate::WAIT).execute(&mut conn).now_or_never().is_none());
            (pool, conn)
        })
    })
    .await
    .expect("no panic");
    let mut conn = conn;

    let next = ends(sqlx::query("select 1").execute(&mut conn)).await;

    assert!(next.is_err(), "its link was the runtime's");
    drop(conn);
    ends(pool.close(Duration::from_secs(1))).await;
    gate.open().await;
}
