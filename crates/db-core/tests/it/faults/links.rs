//! Faults of the network.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use db_core::{AcquirePhase, Class, CloseReason, Error};
use db_testkit::{Proxy, Session, TestDb, until};
use futures_util::TryStreamExt;
use futures_util::future::join_all;

use super::stage::{
    CONTROL, Gate, HANGS, LONG, NAME, SLACK, ask, ends, fill, hasty, options, recovers, rows, stage, table,
    take_all, until_control, until_quiet,
};
use super::traffic::Traffic;

/// Short, where a test waits for it to pass.
const SHORT: Duration = Duration::from_millis(700);

/// The number of the pool's sessions without the control connection.
fn of_the_pool(sessions: &[Session]) -> usize {
    sessions.iter().filter(|session| session.application_name == NAME).count()
}

fn assert_lost(error: &Error) {
    assert!(matches!(error, Error::Statement(_)), "{error:?}");
    assert_eq!(error.class(), Class::Lost, "{error:?}");
    assert!(error.is_transient());
}

/// Asserts the error of an acquire that did not reach the server.
fn assert_not_reached(error: &Error, limit: Duration) {
    let Error::Acquire(acquire) = error else { panic!("{error:?}") };
    assert_eq!(acquire.phase(), AcquirePhase::Dial, "{error}");
    assert!(acquire.waited() >= limit && acquire.waited() < limit + SLACK, "{error}");
    assert_eq!(error.class(), Class::NotReached);
    assert!(error.is_transient());
}

#[db_testkit::test]
async fn connections_that_were_reset_while_idle_are_replaced_unnoticed(db: TestDb) {
    let (proxy, pool) = stage(&db, options(4));
    let before = fill(&pool).await;

    proxy.reset();

    let conns = take_all(&pool).await;
    let after: BTreeSet<_> = conns.iter().map(|conn| conn.pid()).collect();
    assert!(after.is_disjoint(&before), "{after:?} {before:?}");
    drop(conns);
    recovers(&pool).await;
    let totals = pool.stats().totals;
    assert_eq!((totals.closed.of(CloseReason::Lost), totals.dialled), (4, 8), "{totals:?}");
}

#[db_testkit::test]
async fn a_reset_in_a_statement_is_a_lost_session_and_frees_its_slot(db: TestDb) {
    let (proxy, pool) = stage(&db, options(2));
    fill(&pool).await;
    let gate = Gate::shut(&db).await;
    let both = join_all((0..2).map(|_| ends(sqlx::query(Gate::WAIT).execute(pool.handle()))));
    let fault = async {
        gate.until_waiting(2).await;
        proxy.reset();
    };

    let (results, ()) = tokio::join!(both, fault);

    for result in results {
        assert_lost(&Error::from(result.expect_err("there is no link")));
    }
    recovers(&pool).await;
    let totals = pool.stats().totals;
    assert_eq!(
        (totals.closed.of(CloseReason::Lost), totals.repair_failed),
        (2, 0),
        "lost connections are not repaired: {totals:?}"
    );
    // The gate is still shut, so the sessions that wait there were ended by the pool.
    db.until_sessions("only the new sessions are left", |all| of_the_pool(all) == 2).await;
    gate.open().await;
}

#[db_testkit::test]
async fn a_reset_between_two_statements_of_a_transaction_leaves_nothing_of_it(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(1));

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            proxy.reset();
            sqlx::query("insert into t values (2)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    assert_lost(&result.expect_err("there is no link"));
    recovers(&pool).await;
    db.until_quiet().await;
    assert_eq!(rows(&db).await, 0);
}

#[db_testkit::test]
async fn in_a_black_hole_each_call_ends_at_its_deadline_and_the_pool_recovers(db: TestDb) {
    let (proxy, pool) = stage(&db, hasty(2, SHORT, SHORT));
    fill(&pool).await;
    let mut conn = ends(pool.handle().acquire()).await.expect("a connection");

    proxy.black_hole();

    let begun = Instant::now();
    let error = Error::from(
        ends(sqlx::query("select 1").execute(&mut conn)).await.expect_err("no answer in a black hole"),
    );
    assert!(begun.elapsed() >= SHORT && begun.elapsed() < SHORT + SLACK, "{:?}", begun.elapsed());
    assert!(matches!(error, Error::Deadline(_)) && error.class() == Class::TimedOut, "{error:?}");
    drop(conn);
    // First an idle connection does not answer its ping, then dials fail.
    for _ in 0..2 {
        assert_not_reached(&ask(&pool, 1).await.expect_err("no answer in a black hole"), SHORT);
    }

    proxy.heal();

    recovers(&pool).await;
    db.until_sessions("no session is left over", |all| of_the_pool(all) == 2).await;
}

#[db_testkit::test]
async fn a_call_that_waits_in_a_black_hole_gets_its_connection_after_the_recovery(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    proxy.black_hole();
    let fault = async {
        until("a dial has started", async || proxy.accepted() > 0).await;
        proxy.heal();
    };

    let (answer, ()) = tokio::join!(ask(&pool, 1), fault);

    answer.expect("an answer after the recovery");
    recovers(&pool).await;
}

#[db_testkit::test]
async fn frozen_idle_connections_are_replaced_and_do_not_return_after_the_thaw(db: TestDb) {
    let (proxy, pool) = stage(&db, options(4));
    let before = fill(&pool).await;

    proxy.freeze_open();

    let conns = take_all(&pool).await;
    proxy.thaw();
    let after: BTreeSet<_> = conns.iter().map(|conn| conn.pid()).collect();
    assert!(after.is_disjoint(&before), "{after:?} {before:?}");
    drop(conns);
    recovers(&pool).await;
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 4);
    db.until_sessions("the old sessions are gone", |all| of_the_pool(all) == 4).await;
}

#[db_testkit::test]
async fn a_freeze_that_ends_before_the_deadline_costs_nothing(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    fill(&pool).await;
    let gate = Gate::shut(&db).await;
    let statement = ends(sqlx::query(Gate::WAIT).execute(pool.handle()));
    let fault = async {
        gate.until_waiting(1).await;
        proxy.freeze();
        gate.open().await;
        db.until_quiet().await;
        proxy.thaw();
    };

    let (result, ()) = tokio::join!(statement, fault);

    result.expect("a late answer");
    recovers(&pool).await;
    let totals = pool.stats().totals;
    assert_eq!((totals.closed.of(CloseReason::Lost), totals.dialled), (0, 1), "{totals:?}");
}

#[db_testkit::test]
async fn a_statement_whose_link_froze_is_cancelled_by_another_connection(db: TestDb) {
    // Longer than the time after which the control connection is pinged: its link is frozen, too.
    let (proxy, pool) = stage(&db, hasty(1, LONG, SHORT * 2));
    fill(&pool).await;
    until_control(&db).await;
    let mut conn = ends(pool.handle().acquire()).await.expect("a connection");
    let gate = Gate::shut(&db).await;
    let statement = async {
        let result = ends(sqlx::query(Gate::WAIT).execute(&mut conn)).await;
        // The connection is returned only after the freeze.
        (result, conn)
    };
    let fault = async {
        gate.until_waiting(1).await;
        proxy.freeze_open();
    };
    let ((result, conn), ()) = tokio::join!(statement, fault);
    let error = Error::from(result.expect_err("the statement waits at the gate"));
    assert!(matches!(error, Error::Deadline(_)) && !error.is_transient(), "{error:?}");

    let pid = conn.pid();
    drop(conn);

    ask(&pool, 1).await.expect("another connection meanwhile");
    assert_eq!(pool.stats().repairing, 1, "the frozen connection is still in repair and blocks no caller");
    // The gate is still shut, so only the cancel can have ended the statement. The session still exists behind its silent link.
    db.until_quiet().await;
    assert!(db.sessions().await.expect("sessions").iter().any(|session| session.pid == pid));
    // Without a thaw, the repair gives up.
    recovers(&pool).await;
    assert_eq!(pool.stats().totals.cancelled, 1);
}

#[db_testkit::test]
async fn one_half_open_connection_reveals_all_others(db: TestDb) {
    const MANY: u32 = 20;
    let (proxy, pool) = stage(&db, options(MANY));
    let before = fill(&pool).await;
    proxy.half_open();
    let begun = Instant::now();

    let conn = ends(pool.handle().acquire()).await.expect("a working connection");

    assert!(!before.contains(&conn.pid()));
    until("all half-open connections are found", async || {
        pool.stats().totals.closed.of(CloseReason::Lost) == u64::from(MANY)
    })
    .await;
    // Found one after the other, they would take six seconds.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(conn);
    until_quiet(&pool).await;
    let stats = pool.stats();
    assert_eq!((stats.open, stats.totals.dialled), (1, u64::from(MANY) + 1), "{stats:?}");
    recovers(&pool).await;
}

#[db_testkit::test]
async fn half_open_idle_connections_are_found_and_replaced_without_a_caller(db: TestDb) {
    let keepalive = Duration::from_millis(500);
    let (proxy, pool) = stage(&db, options(4).min_idle(4).keepalive(keepalive));
    until("four connections are ready", async || pool.stats().idle == 4).await;

    proxy.half_open();

    until("four other connections are ready", async || {
        pool.stats().totals.closed.of(CloseReason::Lost) == 4 && pool.stats().idle == 4
    })
    .await;
    assert_eq!(pool.stats().totals.acquired, 0);
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_slow_link_loses_no_connection(db: TestDb) {
    let (proxy, pool) = stage(&db, options(4));
    proxy.latency(Duration::from_millis(25));
    let before = fill(&pool).await;
    let again = fill(&pool).await;
    assert_eq!(again, before);

    // The repair takes several round trips.
    let handle = pool.handle();
    let abandoned = tokio::spawn(async move { sqlx::query("select pg_sleep(60)").execute(handle).await });
    db.until_sessions("the statement runs", |all| {
        all.iter().any(|it| it.is_sleeping() && it.application_name == NAME)
    })
    .await;
    abandoned.abort();

    recovers(&pool).await;
    assert_eq!(fill(&pool).await, before);
    let totals = pool.stats().totals;
    assert_eq!(
        (totals.closed.of(CloseReason::Lost), totals.repair_failed, totals.dialled),
        (0, 0, 4),
        "{totals:?}"
    );
    assert_eq!((totals.cancelled, totals.repaired), (1, 1), "{totals:?}");
}

#[db_testkit::test]
async fn while_dials_are_refused_open_connections_serve_and_the_failure_is_reported(db: TestDb) {
    let (proxy, pool) = stage(&db, hasty(2, SHORT, LONG));
    ask(&pool, 1).await.expect("an open connection");

    proxy.refuse();

    let held = ends(pool.handle().acquire()).await.expect("the open connection");
    let error = ask(&pool, 2).await.expect_err("no other connection");
    assert_not_reached(&error, SHORT);
    let Error::Acquire(acquire) = &error else { unreachable!("checked above") };
    let (failure, _) = acquire.last_dial_failure().expect("a failure");
    assert!(failure.contains("reset"), "{failure}");
    assert!(error.to_string().contains(failure), "{error}");
    drop(held);
    ask(&pool, 3).await.expect("the open connection still serves");

    proxy.heal();

    recovers(&pool).await;
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0);
}

#[db_testkit::test]
async fn while_dials_are_refused_one_dial_retries_for_all_waiting_callers(db: TestDb) {
    let (proxy, pool) = stage(&db, options(8));
    proxy.refuse();
    let callers = join_all((0..40).map(|number| ask(&pool, number)));
    let fault = async {
        until("one of eight dials retries", async || {
            let stats = pool.stats();
            assert!(stats.waiting < 40 || stats.dialling > 0, "{stats:?}");
            stats.dialling == 1 && stats.totals.dial_failures > 10 && stats.waiting == 40
        })
        .await;
        proxy.heal();
        proxy.latency(Duration::from_millis(20));
        until("further dials run at the same time", async || pool.stats().dialling > 1).await;
    };

    let (answers, ()) = tokio::join!(callers, fault);

    answers.into_iter().collect::<Result<Vec<_>, _>>().expect("an answer for each");
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_truncated_answer_is_an_error_and_never_fewer_rows(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    let many = || sqlx::query("select repeat('x', 100) from generate_series(1, 10000)");
    ask(&pool, 1).await.expect("a connection");

    proxy.cut_after(300_000);
    let error = ends(many().fetch_all(pool.handle())).await.expect_err("a truncated answer");
    assert_lost(&error.into());

    ask(&pool, 2).await.expect("another connection");
    proxy.cut_after(300_000);
    let mut stream = many().fetch(pool.handle());
    let mut seen = 0;
    let error = loop {
        match ends(stream.try_next()).await {
            Ok(Some(_)) => seen += 1,
            Ok(None) => panic!("the truncated answer ended after {seen} rows without an error"),
            Err(error) => break error,
        }
    };
    drop(stream);
    assert!(seen > 0 && seen < 10_000, "{seen}");
    assert_lost(&error.into());
    recovers(&pool).await;
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 2);
}

#[db_testkit::test]
async fn a_statement_is_cancelled_although_the_control_connection_was_lost(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    let mut cancelled = 0;
    for fault in [|_: &Proxy| {}, Proxy::reset, Proxy::half_open] {
        // Hits the idle connection and the control connection, if they exist.
        fault(&proxy);
        let gate = Gate::shut(&db).await;
        let handle = pool.handle();
        let statement = tokio::spawn(async move { sqlx::query(Gate::WAIT).execute(handle).await });
        gate.until_waiting(1).await;

        statement.abort();

        db.until_quiet().await;
        until_quiet(&pool).await;
        cancelled += 1;
        let totals = pool.stats().totals;
        assert_eq!((totals.cancelled, totals.repaired), (cancelled, cancelled), "{totals:?}");
        gate.open().await;
    }
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_connection_whose_cancel_was_never_sent_is_kept(db: TestDb) {
    let (proxy, pool) = stage(&db, options(1));
    // Without a control connection, only a new connection can carry the cancel request.
    proxy.cut_before(CONTROL);
    let before = fill(&pool).await;
    // The connection is returned during the statement, or used again before.
    for (repaired, used_again) in [(1, false), (1, true)] {
        let gate = Gate::shut(&db).await;
        let mut conn = ends(pool.handle().acquire()).await.expect("a connection");
        tokio::select! {
            _ = sqlx::query(Gate::WAIT).execute(&mut conn) => unreachable!("the gate is shut"),
            _ = gate.until_waiting(1) => {}
        }
        let refused = proxy.refused();
        proxy.refuse();
        let opening = async {
            until("the request was refused", async || proxy.refused() > refused).await;
            gate.open().await;
        };

        if used_again {
            let statement = ends(sqlx::query("select 1").execute(&mut conn));
            let (result, ()) = tokio::join!(statement, opening);
            result.expect("the link works");
            drop(conn);
        } else {
            drop(conn);
            opening.await;
            until("the connection is repaired", async || pool.stats().totals.repaired == 1).await;
        }

        assert_eq!(fill(&pool).await, before);
        let totals = pool.stats().totals;
        assert_eq!((totals.cancelled, totals.repaired, totals.repair_failed), (0, repaired, 0), "{totals:?}");
    }
    proxy.heal();
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_commit_after_a_failed_abandoned_statement_is_not_reported_as_committed(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(1));
    proxy.cut_before(CONTROL);
    let gate = Gate::shut(&db).await;
    let mut tx = ends(pool.handle().begin()).await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    let waits_and_fails = "do $$ begin perform pg_advisory_xact_lock(1); raise 'on purpose'; end $$";
    tokio::select! {
        _ = sqlx::query(waits_and_fails).execute(&mut tx) => unreachable!("the gate is shut"),
        _ = gate.until_waiting(1) => {}
    }
    let refused = proxy.refused();
    proxy.refuse();
    let opening = async {
        until("the request to cancel was refused", async || proxy.refused() > refused).await;
        gate.open().await;
    };

    let (result, ()) = tokio::join!(ends(tx.commit()), opening);

    assert!(matches!(result, Err(Error::Aborted)), "{result:?}");
    assert_eq!(rows(&db).await, 0);
    proxy.heal();
    recovers(&pool).await;
}

#[db_testkit::test]
async fn continuous_callers_get_right_answers_again_after_every_fault(db: TestDb) {
    let (proxy, pool) = stage(&db, hasty(4, SHORT, SHORT));
    let traffic = Traffic::begin(&pool, 8);
    traffic.until_answers().await;
    for _ in 0..3 {
        proxy.reset();
        traffic.until_answers().await;
        proxy.cut_after(1_000);
        traffic.until_answers().await;
        proxy.cut_after_from_client(1_000);
        traffic.until_answers().await;
        proxy.half_open();
        traffic.until_answers().await;
        proxy.freeze_open();
        traffic.until_answers().await;
        proxy.thaw();
        traffic.until_answers().await;
    }
    for fault in [Proxy::black_hole, Proxy::freeze, |proxy: &Proxy| {
        proxy.refuse();
        proxy.reset();
    }] {
        let timed_out = pool.stats().totals.timed_out;
        fault(&proxy);
        until("callers time out", async || pool.stats().totals.timed_out > timed_out).await;
        proxy.heal();
        traffic.until_answers().await;
    }

    traffic.end().await;
    recovers(&pool).await;
    db.until_sessions("no session is left over", |all| {
        all.iter().filter(|session| session.application_name == NAME).count() <= 4
    })
    .await;
}

#[db_testkit::test]
async fn a_full_pool_takes_nothing_from_another(db: TestDb) {
    let (_proxy, backend) = stage(&db, options(4));
    let (_other, api) = stage(&db, hasty(2, SHORT, SHORT).name("api"));
    let mut work = tokio::task::JoinSet::new();
    for _ in 0..204 {
        let handle = backend.handle();
        work.spawn(async move { sqlx::query("select pg_sleep(60)").execute(handle).await });
    }
    until("the backend pool is full", async || backend.stats().in_use == 4 && backend.stats().waiting == 200)
        .await;

    for number in 0..200 {
        ask(&api, number).await.expect("the API pool serves");
    }

    let stats = backend.stats();
    assert_eq!((stats.in_use, stats.waiting), (4, 200), "{stats:?}");
    tokio::time::timeout(HANGS, work.shutdown()).await.expect("all tasks end");
    recovers(&backend).await;
    db.until_quiet().await;
}
