//! What observers hear, and what is counted for those who come later.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use db_core::{
    AcquireError, AcquirePhase, Acquired, Class, CloseReason, Config, ConnectFailure, Error, Holder,
    Observer, Pool, PoolOptions, Released, Repaired, Retried, StatementDone, TxOptions, TxRetry,
};
use db_testkit::{Proxy, TestDb, poll_then_drop, until};
use futures_util::{FutureExt, TryStreamExt};

use crate::stale::{Mood, create_mood};
use crate::support::{PATIENCE, config};

/// Keeps what it hears.
#[derive(Debug, Default)]
struct Ear(Mutex<Heard>);

#[derive(Debug, Default, Clone)]
struct Heard {
    acquired: Vec<Acquired>,
    not_acquired: Vec<AcquirePhase>,
    released: Vec<Duration>,
    dialled: Vec<Duration>,
    dial_failed: usize,
    closed: Vec<CloseReason>,
    statements: Vec<Statement>,
    leaked: Vec<String>,
    retried: Vec<(u32, String)>,
    repaired: Vec<Repaired>,
    cancelled: usize,
}

#[derive(Debug, Clone)]
struct Statement {
    name: Option<&'static str>,
    sql: String,
    took: Duration,
    rows: u64,
    affected: u64,
    error: Option<String>,
}

impl Ear {
    fn heard(&self) -> Heard {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: impl FnOnce(&mut Heard)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Observer for Ear {
    fn acquired(&self, acquired: &Acquired) {
        self.note(|heard| heard.acquired.push(*acquired));
    }

    fn not_acquired(&self, error: &AcquireError) {
        self.note(|heard| heard.not_acquired.push(error.phase()));
    }

    fn released(&self, released: &Released) {
        assert!(released.at.to_string().contains("observing.rs"), "{}", released.at);
        self.note(|heard| heard.released.push(released.held));
    }

    fn dialled(&self, took: Duration) {
        self.note(|heard| heard.dialled.push(took));
    }

    fn dial_failed(&self, _: &ConnectFailure) {
        self.note(|heard| heard.dial_failed += 1);
    }

    fn closed(&self, why: CloseReason) {
        self.note(|heard| heard.closed.push(why));
    }

    fn statement(&self, done: &StatementDone<'_>) {
        let StatementDone { name, took, rows, affected, error, .. } = *done;
        let error = error.map(|error| error.to_string());
        let sql = done.redacted();
        assert!(!format!("{done:?}").contains("secret"), "{done:?}");
        self.note(|heard| heard.statements.push(Statement { name, sql, took, rows, affected, error }));
    }

    fn leaked(&self, holder: &Holder) {
        self.note(|heard| heard.leaked.push(holder.to_string()));
    }

    fn retried(&self, retried: &Retried) {
        self.note(|heard| heard.retried.push((retried.attempt, retried.error.to_string())));
    }

    fn repaired(&self, repaired: &Repaired) {
        self.note(|heard| heard.repaired.push(*repaired));
    }

    fn cancelled(&self) {
        self.note(|heard| heard.cancelled += 1);
    }
}

fn options() -> PoolOptions {
    PoolOptions::api().name("test").max(1).acquire_timeout(PATIENCE)
}

fn observed(config: &Config, options: PoolOptions) -> (Pool, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    (Pool::new(config, options.observer(ear.clone())), ear)
}

#[db_testkit::test]
async fn the_wait_for_a_dial_for_others_and_for_a_ping_are_told_apart(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.latency(Duration::from_millis(20));
    let through = Config::from_url(&proxy.url()).expect("the proxy's address");
    let (pool, ear) = observed(&through, options());

    let first = pool.handle().acquire().await.expect("a connection");
    let dialled = ear.heard().acquired[0];
    assert!(dialled.dial >= Duration::from_millis(40), "{dialled:?}");
    assert!(dialled.queue < dialled.dial && dialled.verify.is_zero(), "{dialled:?}");
    assert_eq!(dialled.wait(), dialled.queue + dialled.dial);

    let handle = pool.handle();
    let mut waiter = Box::pin(handle.acquire());
    assert!((&mut waiter).now_or_never().is_none(), "the caller waits");
    until("the connection was held for a while", async || {
        pool.holders().first().is_some_and(|holder| holder.held > Duration::from_millis(100))
    })
    .await;
    let begun = ear.heard().released.len();
    drop(first);
    drop(waiter.await.expect("a connection"));
    let heard = ear.heard();
    let queued = heard.acquired[1];
    assert!(queued.dial.is_zero() && queued.verify.is_zero() && !queued.queue.is_zero(), "{queued:?}");
    assert_eq!(begun, 0, "the first was held until then");
    assert!(heard.released[0] > Duration::from_millis(100), "{heard:?}");

    sqlx::query("select 1").execute(pool.handle()).await.expect("an answer");
    assert_eq!(ear.heard().acquired[2], Acquired::default(), "it was idle, and had just answered");

    let (checked, ear) = observed(&through, options().ping_after(Duration::ZERO));
    for _ in 0..2 {
        sqlx::query("select 1").execute(checked.handle()).await.expect("an answer");
        until("it is idle", async || checked.stats().idle == 1).await;
    }
    let verified = ear.heard().acquired[1];
    assert!(verified.verify >= Duration::from_millis(40), "{verified:?}");
    assert!(verified.queue.is_zero() && verified.dial.is_zero(), "{verified:?}");
    assert_eq!(ear.heard().dialled.len(), 1);
    drop(checked.handle().try_acquire().await.expect("it is idle"));
    let tried = ear.heard().acquired[2];
    assert!(tried.verify >= Duration::from_millis(40) && tried.queue.is_zero(), "{tried:?}");
}

#[db_testkit::test]
async fn statements_are_told_with_name_rows_and_errors_and_without_their_literals(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options());
    let handle = || pool.handle().named("words/all");

    sqlx::raw_sql("create table word (t text primary key)").execute(handle()).await.expect("a table");
    sqlx::query("insert into word values ('secret'), ($1)")
        .bind("bound")
        .execute(handle())
        .await
        .expect("rows");
    sqlx::query("select t from word").fetch_all(handle()).await.expect("rows");
    sqlx::query("select t from word limit 1").fetch_one(handle()).await.expect("a row");
    sqlx::query("insert into word values ('secret')").execute(handle()).await.expect_err("a duplicate");
    let short = TxOptions::default().timeout(Duration::from_secs(2));
    let mut tx = handle().begin_with(short).await.expect("a transaction");
    sqlx::query("select pg_sleep(600)").execute(&mut *tx).await.expect_err("a limit");
    drop(tx);
    until("it is repaired", async || pool.stats().repairing == 0).await;
    let mut copy = pool.handle().copy_in("copy word from stdin").await.expect("a copy");
    copy.send("one\ntwo\nthree\n").await.expect("sent");
    copy.finish().await.expect("stored");
    let tx = pool.handle().named("nothing").begin().await.expect("a transaction");
    tx.commit().await.expect("committed");

    let all = ear.heard().statements;
    let short = |statement: &Statement| {
        (statement.sql.clone(), statement.name, statement.rows, statement.affected, statement.error.clone())
    };
    let told: Vec<_> = all.iter().map(short).collect();
    let (plain, named) = (|sql: &str| sql.to_owned(), Some("words/all"));
    assert_eq!(
        told,
        [
            (plain("create table word (t text primary key)"), named, 0, 0, None),
            (plain("insert into word values ('…'), ($1)"), named, 0, 2, None),
            (plain("select t from word"), named, 2, 2, None),
            (plain("select t from word limit 1"), named, 1, 0, None),
            (plain("insert into word values ('…')"), named, 0, 0, Some(plain("23505"))),
            (plain("BEGIN"), named, 0, 0, None),
            (plain("select pg_sleep(600)"), named, 0, 0, Some(plain("timed_out"))),
            (plain("copy word from stdin"), None, 0, 3, None),
            (plain("BEGIN"), Some("nothing"), 0, 0, None),
            (plain("COMMIT"), Some("nothing"), 0, 0, None),
        ]
    );
    // The limit began with the transaction.
    assert!(all[6].took >= Duration::from_secs(1), "{all:?}");
    assert!(all.iter().all(|statement| !statement.took.is_zero()), "{all:?}");
}

#[db_testkit::test]
async fn a_copy_that_fails_is_told_once(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options().max(2));
    sqlx::raw_sql("create table word (t text check (t <> 'bad'))")
        .execute(&db.pool())
        .await
        .expect("a table");
    let pair = |sql: &str, error: &str| (sql.to_owned(), Some(error.to_owned()));

    pool.handle().copy_in("copy nothing from stdin").await.map(drop).expect_err("no such table");
    pool.handle().copy_out("copy nothing to stdout").try_next().await.expect_err("no such table");
    let mut refused = pool.handle().copy_in("copy word from stdin").await.expect("a copy");
    refused.send("bad\n").await.expect("sent");
    refused.finish().await.expect_err("the check fails");
    let told = ear.heard().statements.into_iter().map(|done| (done.sql, done.error)).collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            pair("copy nothing from stdin", "42P01"),
            pair("copy nothing to stdout", "42P01"),
            pair("copy word from stdin", "23514"),
        ]
    );

    let limit = options().statement_timeout(Duration::from_millis(200));
    let (slow, ear) = observed(&config(&db), limit);
    let mut rows = slow.handle().copy_out("copy (select pg_sleep(600)) to stdout");
    rows.try_next().await.expect_err("a limit");
    let all = ear.heard().statements;
    assert_eq!((all.len(), all[0].error.as_deref()), (1, Some("timed_out")), "{all:?}");
}

#[db_testkit::test]
async fn each_end_of_a_connection_is_told_and_counted_with_its_reason(db: TestDb) {
    let config = config(&db);
    let soon = Duration::from_millis(50);
    for why in CloseReason::ALL {
        let options = match why {
            CloseReason::Lifetime => options().max_lifetime(soon),
            CloseReason::Idle => options().idle_timeout(soon),
            CloseReason::Uses => options().max_uses(Some(1)),
            CloseReason::Limit => options().max_idle(Some(0)),
            _ => options(),
        };
        let (pool, ear) = observed(&config, options);
        let mut conn = pool.handle().acquire().await.expect("a connection");
        match why {
            CloseReason::Lost => {
                let end = sqlx::query("select pg_terminate_backend($1)").bind(conn.pid());
                end.execute(&db.pool()).await.expect("ended");
                sqlx::query("select 1").execute(&mut *conn).await.expect_err("its session has ended");
            }
            CloseReason::Repair => {
                let mut rows = conn.copy_out("copy (select generate_series(1, 1000000)) to stdout");
                rows.try_next().await.expect("a row");
            }
            CloseReason::Evicted => pool.evict(),
            CloseReason::Shut => drop(pool.close(Duration::ZERO).now_or_never()),
            _ => {}
        }
        drop(conn);

        until("the connection is gone", async || !ear.heard().closed.is_empty()).await;
        assert_eq!(ear.heard().closed, [why]);
        let totals = pool.stats().totals;
        for other in CloseReason::ALL {
            assert_eq!(totals.closed.of(other), u64::from(other == why), "{other:?} after {why:?}");
        }
        assert_eq!(totals.dialled, 1, "after {why:?}");
        // The session behind a lost link is ended afterwards, and counts until then.
        until("nothing is left", async || pool.stats().open == 0).await;
    }
}

/// They come back for a repair, which ends them.
#[db_testkit::test]
async fn a_repair_that_ends_a_connection_gives_its_reason(db: TestDb) {
    let config = config(&db);
    let ended = async |ear: &Ear, why: CloseReason| {
        until("it is gone", async || !ear.heard().closed.is_empty()).await;
        assert_eq!(ear.heard().closed[0], why);
    };

    // A type that is created again: the connection that finds it is replaced, as the others are.
    create_mood(&db).await;
    let (pool, ear) = observed(&config, options());
    let ask = async || sqlx::query("select $1").bind(Mood).execute(pool.handle()).await;
    ask().await.expect("the type is known");
    create_mood(&db).await;
    ask().await.expect_err("the type is another");
    ended(&ear, CloseReason::Evicted).await;

    // The server ends a session that idles in its transaction.
    let (pool, ear) = observed(&config, options());
    let mut tx = pool.handle().begin().await.expect("a transaction");
    sqlx::query("set idle_in_transaction_session_timeout = 50").execute(&mut *tx).await.expect("set");
    let pid = tx.pid();
    db.until_sessions("the server has ended it", |all| all.iter().all(|session| session.pid != pid)).await;
    sqlx::query("select 1").execute(&mut *tx).await.expect_err("its session has ended");
    drop(tx);
    ended(&ear, CloseReason::Lost).await;
}

#[db_testkit::test]
async fn a_name_with_line_breaks_is_one_line_of_the_log(db: TestDb) {
    let (pool, _) = observed(&config(&db), options());
    let _conn = pool.handle().named("a\nb\u{1b}[31m").acquire().await.expect("a connection");

    let shown = pool.holders()[0].to_string();
    assert!(shown.contains(r"(a\nb\u{1b}[31m) for") && !shown.contains('\n'), "{shown}");
}

#[db_testkit::test]
async fn idle_connections_that_are_closed_have_the_reason_of_their_own(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options().max(3));
    let many = [pool.handle().acquire().await, pool.handle().acquire().await, pool.handle().acquire().await];
    drop(many);
    until("all are idle", async || pool.stats().idle == 3).await;

    pool.set_limits(pool.limits().max(2));
    until("one is gone", async || ear.heard().closed == [CloseReason::Limit]).await;
    pool.evict();
    until("all are gone", async || ear.heard().closed.len() == 3).await;
    assert_eq!(ear.heard().closed[1..], [CloseReason::Evicted; 2]);
    drop(pool.handle().acquire().await.expect("a connection"));
    pool.close(PATIENCE).await;
    until("the last is gone", async || ear.heard().closed.len() == 4).await;
    assert_eq!(ear.heard().closed[3], CloseReason::Shut);
}

#[db_testkit::test]
async fn repeated_transactions_are_told_and_counted_by_their_error(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options());
    let policy = TxRetry::default().retries(2).min_pause(Duration::ZERO).conflict_pause(Duration::ZERO);
    let fail = async |code: &'static str| {
        let work = || {
            async move |tx: &mut db_core::Tx| {
                let sql = format!("do $$ begin raise exception using errcode = '{code}'; end $$");
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await?;
                Ok::<_, Error>(())
            }
        };
        pool.handle().tx_retry(TxOptions::default(), policy, work).await.expect_err("it fails each time")
    };

    fail("40001").await;
    fail("40P01").await;
    fail("23505").await;

    let told: Vec<_> = ear.heard().retried;
    let pair = |attempt, code: &str| (attempt, code.to_owned());
    assert_eq!(told, [pair(1, "40001"), pair(2, "40001"), pair(1, "40P01"), pair(2, "40P01")]);
    assert_eq!(pool.stats().totals.retries, 4);
    let counted: Vec<_> = pool.retries().iter().map(|(error, count)| (error.to_string(), *count)).collect();
    assert_eq!(counted, [("40001".to_owned(), 2), ("40P01".to_owned(), 2)]);
}

/// A function of the database may raise any of them.
#[db_testkit::test]
async fn retries_by_more_errors_than_fifty_are_counted_together(db: TestDb) {
    let (pool, _) = observed(&config(&db), options());
    let policy = TxRetry::default().retries(1).conflict_pause(Duration::ZERO);
    for number in 0..60 {
        let raise = format!("do $$ begin raise exception using errcode = '40Z{number:02}'; end $$");
        let work = || {
            async |tx: &mut db_core::Tx| {
                sqlx::raw_sql(sqlx::AssertSqlSafe(raise.clone())).execute(&mut *tx).await?;
                Ok::<_, Error>(())
            }
        };
        pool.handle().tx_retry(TxOptions::default(), policy, work).await.expect_err("it fails each time");
    }

    let retries = pool.retries();
    let last = retries.last().map(|(error, count)| (error.to_string(), *count));
    assert_eq!((retries.len(), last), (51, Some(("conflict".to_owned(), 10))));
    assert_eq!((pool.stats().totals.retries, retries.iter().map(|(_, count)| count).sum()), (60, 60));
}

#[db_testkit::test]
async fn callers_without_a_connection_are_told_with_the_phase(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options().max_waiting(Some(1)));
    let held = pool.handle().acquire().await.expect("a connection");
    let waits = tokio::spawn(pool.handle().acquire_timeout(Duration::from_secs(2)).acquire());
    until("it waits", async || pool.stats().waiting == 1).await;
    pool.handle().acquire().await.expect_err("turned away");
    waits.await.expect("no panic").expect_err("nobody gave one back");
    assert!(poll_then_drop(pool.handle().acquire(), 1).await.is_none(), "it waits");
    drop(held);
    pool.close(PATIENCE).await;
    pool.handle().acquire().await.expect_err("closed");

    assert_eq!(ear.heard().not_acquired, [AcquirePhase::Shed, AcquirePhase::Queue, AcquirePhase::Closed]);
    assert_eq!(ear.heard().acquired.len(), 1);
}

#[db_testkit::test]
async fn a_connection_that_fails_its_check_is_neither_acquired_nor_released(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options().ping_after(Duration::ZERO));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let pid = conn.pid();
    conn.ping().await.expect("an answer");
    drop(conn);
    until("it is idle", async || pool.stats().idle == 1).await;
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&db.pool()).await.expect("ended");
    db.until_sessions("it has ended", |all| all.iter().all(|session| session.pid != pid)).await;

    drop(pool.handle().acquire().await.expect("another connection"));

    // Told after the connection is handed to its caller.
    until("both dials are told", async || ear.heard().dialled.len() == 2).await;
    let heard = ear.heard();
    assert_eq!((heard.acquired.len(), heard.released.len(), heard.dialled.len()), (2, 2, 2), "{heard:?}");
    assert_eq!(heard.closed, [CloseReason::Lost]);
    assert_eq!(heard.statements.len(), 0, "pings are none: {heard:?}");
}

#[db_testkit::test(leaves = "pg_sleep")]
async fn leaks_cancels_and_repairs_are_told(db: TestDb) {
    let (pool, ear) = observed(&config(&db), options().leak_after(Duration::from_millis(100)));
    let mut conn = pool.handle().named("held").acquire().await.expect("a connection");
    until("it is reported", async || !ear.heard().leaked.is_empty()).await;
    assert!(ear.heard().leaked[0].contains("(held) for"), "{:?}", ear.heard().leaked);

    let sleep = sqlx::query("select pg_sleep(600)").execute(&mut *conn);
    tokio::select! {
        _ = sleep => panic!("it sleeps for ten minutes"),
        () = db.until_sessions("it sleeps", |all| all.iter().any(db_testkit::Session::is_sleeping)).map(drop) => {}
    }
    drop(conn);
    until("it is repaired", async || ear.heard().repaired.len() == 1).await;

    let heard = ear.heard();
    assert!(heard.repaired[0].is_good && !heard.repaired[0].took.is_zero(), "{heard:?}");
    assert_eq!((heard.cancelled, heard.leaked.len(), heard.statements.len()), (1, 1, 0), "{heard:?}");
    assert!(heard.released[0] > Duration::from_millis(100), "{heard:?}");
}

#[db_testkit::test]
async fn failed_dials_and_commits_without_an_answer_are_told_and_counted(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let through = Config::from_url(&proxy.url()).expect("the proxy's address");
    let (pool, ear) = observed(&through, options());
    let mut tx = pool.handle().begin().await.expect("a transaction");
    sqlx::query("select 1").execute(&mut *tx).await.expect("an answer");
    proxy.cut_answer_to("COMMIT");
    let error = tx.commit().await.expect_err("the answer is lost");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error}");
    assert_eq!(pool.stats().totals.ambiguous, 1);
    assert_eq!(error.error_type().to_string(), Class::Lost.as_str());
    assert_eq!(ear.heard().statements.last().and_then(|done| done.error.clone()).as_deref(), Some("lost"));

    proxy.refuse();
    let gone =
        pool.handle().acquire_timeout(Duration::from_millis(500)).acquire().await.expect_err("refused");
    assert_eq!(gone.phase(), AcquirePhase::Dial);
    assert!(ear.heard().dial_failed > 0);
    assert_eq!(ear.heard().not_acquired, [AcquirePhase::Dial]);
}

#[db_testkit::test]
async fn an_observer_that_comes_later_hears_the_rest_beside_the_first(db: TestDb) {
    let (pool, first) = observed(&config(&db), options());
    sqlx::query("select 1").execute(pool.handle()).await.expect("an answer");
    let second = Arc::new(Ear::default());
    pool.observe(second.clone());
    sqlx::query("select 2").execute(pool.handle()).await.expect("an answer");

    assert_eq!((first.heard().statements.len(), second.heard().statements.len()), (2, 1));
}
