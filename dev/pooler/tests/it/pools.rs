//! Pools on real poolers in transaction mode.

use std::collections::HashSet;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use db_core::connect::connect;
use db_core::{
    AcquirePhase, Class, Classify, CloseReason, Config, ConnectFailure, ConnectRetry, Error, Pool,
    PoolOptions, Pooler, Reset, TxOptions,
};
use db_testkit::{PgBouncer, PgBouncerBuilder, Stop, TestDb, TestServer, until};
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row, SqlSafeStr};

use crate::support::{PATIENCE, old_program};

fn following() -> PgBouncerBuilder {
    PgBouncer::builder().default_pool_size(4).max_prepared_statements(100)
}

fn old() -> PgBouncerBuilder {
    PgBouncer::builder().default_pool_size(4).program(old_program())
}

fn config(bouncer: &PgBouncer) -> Config {
    Config::from_url(&bouncer.url()).expect("its address")
}

fn options(max: u32) -> PoolOptions {
    PoolOptions::api().name("test").max(max).acquire_timeout(PATIENCE)
}

fn pool(bouncer: &PgBouncer, max: u32) -> Pool {
    Pool::new(&config(bouncer), options(max))
}

async fn number(pool: &Pool, n: i32) -> Result<i32, Error> {
    Ok(sqlx::query_scalar("select $1::int4").bind(n).fetch_one(pool.handle()).await?)
}

fn one_try() -> ConnectRetry {
    ConnectRetry::default().deadline(Duration::ZERO)
}

#[db_testkit::test]
async fn statements_transactions_and_streams_work_through_it_for_more_connections_than_sessions(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let pool = pool(&bouncer, 16);
    sqlx::raw_sql("create table t (n int primary key)").execute(&db.pool()).await.expect("a table");

    let tasks = (0..64).map(|n| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                assert_eq!(number(&pool, n).await.expect("an answer"), n);
            }
            let inserted = pool.handle().tx(async |tx| {
                sqlx::query("insert into t values ($1)").bind(n).execute(&mut *tx).await?;
                Ok::<i32, Error>(
                    sqlx::query_scalar("select n from t where n = $1").bind(n).fetch_one(&mut *tx).await?,
                )
            });
            assert_eq!(inserted.await.expect("committed"), n);
        })
    });
    for task in join_all(tasks).await {
        task.expect("no panic");
    }

    let rows = sqlx::query("select n from t").fetch_all(pool.handle()).await.expect("rows");
    assert_eq!(rows.len(), 64);
    let sessions = db.sessions().await.expect("sessions");
    assert!(sessions.len() <= 4, "{sessions:?}");
    assert!(sessions.iter().all(|session| !session.application_name.ends_with("control")), "{sessions:?}");
    assert_eq!(pool.handle().acquire().await.expect("a connection").pid(), 0);
    assert!(pool.close(PATIENCE).await.is_clean());
}

#[db_testkit::test]
async fn a_pooler_that_does_not_track_prepared_statements_is_refused_with_what_to_do(db: TestDb) {
    for builder in [old(), PgBouncer::builder().default_pool_size(4).max_prepared_statements(0)] {
        let bouncer = builder.start(&db).await.expect("a pooler");
        let version = bouncer.version();

        let error = connect(&config(&bouncer), one_try()).await.expect_err("refused");
        assert!(
            matches!(error.failure(), ConnectFailure::Pooler(_)) && error.failure().is_final(),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("PgBouncer 1.21 or later with max_prepared_statements above 0"),
            "{version:?}: {error}"
        );
        assert_eq!(error.attempts(), 1);

        let pool = pool(&bouncer, 2);
        let error = number(&pool, 1).await.expect_err("refused");
        let Error::Acquire(error) = error else { panic!("{error}") };
        assert_eq!(error.phase(), AcquirePhase::Dial);
        assert!(error.to_string().contains("does not track prepared statements"), "{version:?}: {error}");
        // The statement that the check prepared is not left behind in the shared session.
        let mut stranger = bouncer.options().connect().await.expect("connected");
        let left = stranger.fetch_all(sqlx::raw_sql("select name from pg_prepared_statements")).await;
        assert_eq!(left.expect("names").len(), 0, "{version:?}");
    }
}

#[db_testkit::test]
async fn a_pooler_that_the_address_does_not_mention_is_recognised(db: TestDb) {
    for builder in [old(), following()] {
        let bouncer = builder.start(&db).await.expect("a pooler");
        let unsaid = config(&bouncer).with_pooler(Pooler::None);

        let error = connect(&unsaid, one_try()).await.expect_err("refused");

        assert!(error.failure().is_final(), "{error}");
        assert!(error.to_string().contains("add pgbouncer=true to the address"), "{error}");
        let pool = Pool::new(&unsaid, options(1));
        let error = number(&pool, 1).await.expect_err("refused").to_string();
        assert!(error.contains("add pgbouncer=true to the address"), "{error}");
    }
}

/// Whichever user runs PgBouncer must be able to read the file.
fn passwords(folder: &Path) -> String {
    set_permissions(folder, Permissions::from_mode(0o755)).expect("permissions");
    let file = folder.join("userlist.txt");
    std::fs::write(&file, "\"app\" \"right\"\n").expect("written");
    set_permissions(&file, Permissions::from_mode(0o644)).expect("permissions");
    file.display().to_string()
}

#[db_testkit::test]
async fn a_login_that_the_pooler_refuses_fails_at_once(db: TestDb) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = passwords(folder.path());
    for builder in [old(), following()] {
        for auth_type in ["md5", "scram-sha-256"] {
            let builder = builder.clone().setting("auth_type", auth_type).setting("auth_file", &*file);
            let bouncer = builder.start(&db).await.expect("a pooler");
            let with = |login: &str| {
                let url = bouncer.url();
                let (_, rest) = url.split_once('@').expect("a role");
                Config::from_url(&format!("postgres://{login}@{rest}")).expect("an address")
            };

            let right = connect(&with("app:right"), one_try()).await;
            assert_eq!(
                right.is_ok(),
                bouncer.version() >= (1, 21, 0),
                "an old version lets it in, but does not track prepared statements: {right:?}"
            );
            if let Err(error) = right {
                assert!(matches!(error.failure(), ConnectFailure::Pooler(_)), "{error}");
            }
            for login in ["app:wrong", "stranger:right"] {
                let error = connect(&with(login), ConnectRetry::default()).await.expect_err("refused");
                let (role, _) = login.split_once(':').expect("a role");
                assert_eq!(error.failure(), &ConnectFailure::WrongPassword(role.to_owned()));
                assert_eq!(error.attempts(), 1, "waiting does not mend it");
            }
        }
        let bouncer = builder.start(&db).await.expect("a pooler");
        let error = connect(&config(&bouncer).with_database("nope"), ConnectRetry::default())
            .await
            .expect_err("refused");
        assert_eq!(error.failure(), &ConnectFailure::NoSuchDatabase("nope".to_owned()));
        assert_eq!(error.attempts(), 1, "waiting does not mend it");
    }
}

#[db_testkit::test]
async fn in_session_mode_it_works_as_without_one_once_it_ignores_what_it_does_not_know(db: TestDb) {
    for builder in [old(), following()] {
        let builder = builder.setting("pool_mode", "session");
        let bouncer = builder.clone().start(&db).await.expect("a pooler");
        let strict = Pool::new(&config(&bouncer).with_pooler(Pooler::None), options(1));
        let error = number(&strict, 1).await.expect_err("refused").to_string();
        assert!(error.contains("list the parameter in its ignore_startup_parameters"), "{error}");

        // The setting that the guide recommends.
        let builder = builder.setting("ignore_startup_parameters", "extra_float_digits,options");
        let bouncer = builder.start(&db).await.expect("a pooler");
        let pool = Pool::new(&config(&bouncer).with_pooler(Pooler::None), options(1));

        assert_eq!(number(&pool, 1).await.expect("an answer"), 1);
        sqlx::query("select pg_advisory_lock(1)").execute(pool.handle()).await.expect("a session of its own");
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let cut = sqlx::query("select pg_sleep(600)").execute(&mut conn);
        assert!(tokio::time::timeout(Duration::from_millis(100), cut).await.is_err());
        drop(conn);
        assert_eq!(number(&pool, 2).await.expect("an answer"), 2);
        until("it was cancelled by the process that is its own", async || pool.stats().totals.cancelled == 1)
            .await;
        assert!(pool.close(PATIENCE).await.is_clean());
    }
}

#[db_testkit::test]
async fn a_statement_that_needs_a_session_of_its_own_is_not_sent(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let pool = pool(&bouncer, 2);
    let direct = Pool::new(&Config::from_url(&db.direct_url()).expect("an address"), options(2));

    for (statement, instead) in [
        ("listen a", "LISTEN needs a session of its own"),
        ("select pg_advisory_lock(1)", "use a transaction-level lock, such as pg_advisory_xact_lock"),
        ("set search_path = pg_catalog", "use SET LOCAL in a transaction"),
        ("create temp table t (n int)", "with ON COMMIT DROP"),
        ("prepare p as select 1", "let the driver prepare statements"),
        ("declare c cursor with hold for select 1", "read it inside the transaction"),
    ] {
        let refused = |error: Error| {
            assert!(matches!(error, Error::Pooler(_)), "{statement}: {error}");
            assert_eq!(error.class(), Class::Other);
            assert!(error.to_string().starts_with("pool `test`: "), "{error}");
            assert!(
                error.to_string().contains(instead) && error.to_string().contains("pools.rs:"),
                "{error}"
            );
        };
        refused(sqlx::query(statement).execute(pool.handle()).await.expect_err(statement).into());
        refused(sqlx::query(statement).fetch_all(pool.handle()).await.expect_err(statement).into());
        refused(sqlx::raw_sql(statement).execute(pool.handle()).await.expect_err(statement).into());
        let mut conn = pool.handle().acquire().await.expect("a connection");
        refused(conn.prepare(statement.into_sql_str()).await.expect_err(statement).into());
        drop(conn);
        let in_tx = pool.handle().tx(async |tx| {
            sqlx::query(statement).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        });
        refused(in_tx.await.expect_err(statement));
        if !statement.starts_with("declare") {
            sqlx::query(statement).execute(direct.handle()).await.expect("as ever, without a pooler");
        }
    }

    assert_eq!(number(&pool, 7).await.expect("an answer"), 7);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0, "no connection was lost for it");
}

#[db_testkit::test]
async fn each_transaction_tells_the_server_its_limits(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let limits = options(1).statement_timeout(Duration::from_secs(7)).tx_timeout(Duration::from_secs(20));
    let pool = Pool::new(&config(&bouncer), limits);
    let said = async |options: TxOptions| {
        pool.handle()
            .tx_with(options, async |tx| {
                let said: (String, String) = sqlx::query_as(
                    "select current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')",
                )
                .fetch_one(&mut *tx)
                .await?;
                Ok::<_, Error>(said)
            })
            .await
            .expect("an answer")
    };

    assert_eq!(said(TxOptions::default()).await, ("7s".into(), "30s".into()));
    let short = TxOptions::default().timeout(Duration::from_secs(2));
    assert_eq!(
        said(short).await,
        ("2s".into(), "30s".into()),
        "the transaction's own limit, if that is shorter"
    );
    let other = TxOptions::default().statement_timeout(Duration::from_secs(3));
    assert_eq!(said(other).await, ("3s".into(), "30s".into()), "the transaction's own setting wins");
    let late = Instant::now() + Duration::from_secs(5);
    let mut tx = pool.handle().deadline(late).begin().await.expect("a transaction");
    let server = "select extract(epoch from current_setting('statement_timeout')::interval)::float8";
    let seconds: f64 = sqlx::query_scalar(server).fetch_one(&mut *tx).await.expect("an answer");
    assert!(seconds > 0.0 && seconds <= 5.0, "the caller's deadline, as nobody can cancel: {seconds}");
    tx.rollback().await.expect("rolled back");
    let outside: String =
        sqlx::query_scalar("show statement_timeout").fetch_one(pool.handle()).await.expect("an answer");
    assert_eq!(outside, "0", "no limit stays in the session");
}

#[db_testkit::test]
async fn a_dropped_transaction_is_rolled_back_and_met_by_nobody(db: TestDb) {
    let bouncer = following().default_pool_size(1).start(&db).await.expect("a pooler");
    // Discard does nothing here: sessions are shared, so the pool must not reset them.
    let pool = Pool::new(&config(&bouncer), options(1).reset(Reset::DiscardAll));
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    // The pool of another service, which shares the single session of the server.
    let other = self::pool(&bouncer, 1);
    assert_eq!(number(&other, 1).await.expect("an answer"), 1);

    for text in [false, true] {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        if text {
            sqlx::query("begin").execute(&mut conn).await.expect("begun");
            sqlx::query("insert into t values (1)").execute(&mut conn).await.expect("inserted");
            drop(conn);
        } else {
            let mut tx = conn.begin().await.expect("begun");
            sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
            drop(tx);
        }

        let rows: i64 =
            sqlx::query_scalar("select count(*) from t").fetch_one(other.handle()).await.expect("a count");
        assert_eq!(rows, 0);
    }
    until("both are repaired", async || pool.stats().totals.repaired == 2).await;
    let mut stranger = bouncer.options().connect().await.expect("connected");
    let kept = sqlx::raw_sql("select name from pg_prepared_statements where statement = 'select $1::int4'");
    assert_eq!(stranger.fetch_all(kept).await.expect("names").len(), 1, "what the other has prepared");
}

#[db_testkit::test(leaves = "pg_sleep")]
async fn a_statement_that_was_cut_off_is_waited_for_and_not_cancelled(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let pool = pool(&bouncer, 1);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let cut = sqlx::query("select pg_sleep(0.5)").execute(&mut conn);
    assert!(tokio::time::timeout(Duration::from_millis(100), cut).await.is_err());
    drop(conn);

    until("the statement has ended", async || {
        let sessions = db.sessions().await.expect("sessions");
        assert!(sessions.iter().all(|session| session.application_name != "test control"), "{sessions:?}");
        pool.stats().totals.repaired == 1
    })
    .await;

    assert_eq!(pool.stats().totals.cancelled, 0);
    assert_eq!(number(&pool, 1).await.expect("an answer"), 1);
    // A statement that does not end in time costs its connection, and the place of that connection is free again.
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let cut = sqlx::query("select pg_sleep(30)").execute(&mut conn);
    assert!(tokio::time::timeout(Duration::from_millis(100), cut).await.is_err());
    drop(conn);
    assert_eq!(number(&pool, 2).await.expect("an answer"), 2);
    until("the connection is closed", async || pool.stats().totals.repair_failed == 1).await;
    assert_eq!(number(&pool, 3).await.expect("an answer"), 3);
}

#[db_testkit::test]
async fn ten_thousand_dropped_statements_cancel_none_of_another_service(db: TestDb) {
    const DROPPERS: u32 = 4;
    let bouncer = following().default_pool_size(6).start(&db).await.expect("a pooler");
    let (ours, theirs) = (pool(&bouncer, 8), pool(&bouncer, 8));
    let over = Arc::new(AtomicBool::new(false));
    let dropped = Arc::new(AtomicU32::new(0));

    let droppers: Vec<_> = (0..DROPPERS)
        .map(|_| {
            let (pool, dropped) = (ours.clone(), Arc::clone(&dropped));
            tokio::spawn(async move {
                while dropped.load(Ordering::Relaxed) < 10_000 {
                    let mut conn = pool.handle().acquire().await.expect("a connection");
                    let statement = sqlx::query("select pg_sleep($1)").bind(0.002).execute(&mut conn);
                    let patience = Duration::from_micros(fastrand::u64(0..2_000));
                    if tokio::time::timeout(patience, statement).await.is_err() {
                        dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let others: Vec<_> = (0..4)
        .map(|_| {
            let (pool, over) = (theirs.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let mut done = 0u32;
                while !over.load(Ordering::Relaxed) {
                    let number = fastrand::i32(..);
                    let sleep = f64::from(fastrand::u32(0..4)) / 1000.0;
                    let answer: i32 = sqlx::query_scalar("select $1::int from (select pg_sleep($2)) s")
                        .bind(number)
                        .bind(sleep)
                        .fetch_one(pool.handle())
                        .await
                        .map_err(Error::from)
                        .unwrap_or_else(|error| panic!("{error}"));
                    assert_eq!(answer, number);
                    done += 1;
                }
                done
            })
        })
        .collect();
    for dropper in droppers {
        dropper.await.expect("a dropper");
    }
    over.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for other in others {
        answered += other.await.expect("no statement of the other service was cancelled");
    }

    assert!(answered > 1_000, "{answered}");
    let stats = ours.stats();
    assert!(dropped.load(Ordering::Relaxed) >= 10_000 && stats.totals.cancelled == 0, "{stats:?}");
    assert_eq!(theirs.stats().totals.closed.of(CloseReason::Lost), 0);
    assert!(db.sessions().await.expect("sessions").len() <= 6);
    until("all connections are returned", async || {
        let stats = ours.stats();
        stats.in_use == 0 && stats.repairing == 0 && stats.open <= 8
    })
    .await;
    assert_eq!(number(&ours, 7).await.expect("an answer"), 7);
}

#[db_testkit::test]
async fn a_changed_table_fails_no_statement_of_two_services(db: TestDb) {
    let bouncer = following().default_pool_size(1).start(&db).await.expect("a pooler");
    let services = [pool(&bouncer, 2), pool(&bouncer, 2)];
    sqlx::raw_sql("create table t (n int); insert into t values (1)")
        .execute(&db.pool())
        .await
        .expect("a table");
    let columns = async |pool: &Pool| {
        let row = sqlx::query("select * from t").fetch_one(pool.handle()).await.expect("a row");
        row.columns().len()
    };

    for more in 1..4 {
        for service in &services {
            assert_eq!(columns(service).await, more);
        }
        let alter = ["a", "b", "c"][more - 1];
        let alter = AssertSqlSafe(format!("alter table t add {alter} int"));
        sqlx::raw_sql(alter).execute(&db.pool()).await.expect("altered");
    }
    for service in &services {
        assert_eq!(columns(service).await, 4);
    }
}

#[db_testkit::test]
async fn a_pooler_that_was_restarted_is_found_again(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let pool = pool(&bouncer, 4);
    let held = pool.handle().acquire().await.expect("a connection");
    assert_eq!(number(&pool, 1).await.expect("an answer"), 1);

    bouncer.kill().expect("killed");
    let lost = number(&pool, 2).await;
    bouncer.restart().await.expect("started again");
    drop(held);

    assert!(lost.is_err_and(|error| error.is_transient()));
    for n in 0..8 {
        let answer = pool.handle().tx_retry(TxOptions::default(), db_core::TxRetry::default(), move || {
            async move |tx| {
                Ok::<i32, Error>(sqlx::query_scalar("select $1::int4").bind(n).fetch_one(&mut *tx).await?)
            }
        });
        assert_eq!(answer.await.expect("an answer"), n);
    }
}

#[db_testkit::test]
async fn a_server_that_is_down_behind_it_is_waited_for(_db: TestDb) {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let bouncer = following().setting("server_login_retry", "1").start(&db).await.expect("a pooler");
    let pool = pool(&bouncer, 2);
    assert_eq!(number(&pool, 1).await.expect("an answer"), 1);
    let down = Config::from_url(&bouncer.url()).expect("its address");

    server.stop(Stop::Immediate).await.expect("stopped");
    let failure = connect(&down, one_try().attempt(Duration::from_secs(1))).await;
    assert!(failure.is_err(), "a login at the pooler does not prove that the server answers");
    let opened = tokio::spawn(async move { connect(&down, ConnectRetry::default()).await.map(drop) });
    server.until_up().await.expect("up again");

    opened.await.expect("no panic").expect("reached");
    until("the pool serves again", async || number(&pool, 3).await.is_ok()).await;
}

#[db_testkit::test]
async fn a_wait_in_vain_for_a_session_of_the_pooler_is_worth_another_try(db: TestDb) {
    let builder = following().default_pool_size(1).setting("query_wait_timeout", "1");
    let bouncer = builder.start(&db).await.expect("a pooler");
    let (holding, waiting) = (pool(&bouncer, 1), pool(&bouncer, 1));
    assert_eq!(number(&waiting, 1).await.expect("an answer"), 1);
    let tx = holding.handle().begin().await.expect("begun");

    let error = number(&waiting, 2).await.expect_err("there is one session, and it is taken");

    assert!(error.is_transient() && error.retry_after().is_some(), "{error}");
    assert_eq!(error.retry_class(), Some(Class::NotReached), "it was not run: {error}");
    tx.rollback().await.expect("rolled back");
    assert_eq!(number(&waiting, 3).await.expect("an answer"), 3);
}

#[db_testkit::test]
async fn closing_waits_for_work_and_ends_nobody_elses_session(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let (ours, theirs) = (pool(&bouncer, 2), pool(&bouncer, 2));
    assert_eq!(number(&theirs, 1).await.expect("an answer"), 1);
    let before: HashSet<i32> =
        db.sessions().await.expect("sessions").iter().map(|session| session.pid).collect();
    let mut conn = ours.handle().acquire().await.expect("a connection");
    let running =
        tokio::spawn(async move { sqlx::query("select pg_sleep(2)").execute(&mut conn).await.map(drop) });
    until("it runs", async || {
        db.sessions().await.expect("sessions").iter().any(db_testkit::Session::is_running)
    })
    .await;

    let closed = ours.close(Duration::from_millis(400)).await;

    assert!(!closed.in_time && closed.aborted.len() == 1, "{closed:?}");
    running.await.expect("no panic").expect("it was not cancelled");
    assert_eq!(number(&theirs, 2).await.expect("an answer"), 2);
    let after: HashSet<i32> =
        db.sessions().await.expect("sessions").iter().map(|session| session.pid).collect();
    assert!(before.is_subset(&after), "{before:?} {after:?}");
}

#[db_testkit::test]
async fn each_transaction_has_the_settings_of_the_pool_and_what_comes_after_it_has_not(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let pool =
        Pool::new(&config(&bouncer), options(1).set("app.note", "here").set("application_name", "shop 7"));
    let outside = async || {
        let asked = sqlx::query_scalar("select coalesce(current_setting('app.note', true), '')");
        asked.fetch_one(pool.handle()).await.expect("asked")
    };

    for _ in 0..2 {
        let inside = pool.handle().tx(async |tx| {
            let note = sqlx::query_scalar("select current_setting('app.note')").fetch_one(&mut *tx).await?;
            Ok::<String, Error>(note)
        });
        assert_eq!(inside.await.expect("the setting"), "here");
        let note: String = outside().await;
        assert_eq!(note, "");
    }

    let name =
        sqlx::query_scalar("select current_setting('application_name')").fetch_one(pool.handle()).await;
    let name: String = name.expect("a name");
    assert_eq!(name, "shop 7");
}

#[db_testkit::test]
async fn entities_and_their_transactions_work_through_it_for_more_connections_than_sessions(db: TestDb) {
    use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};
    let bouncer = following().default_pool_size(2).start(&db).await.expect("a pooler");
    let pool = pool(&bouncer, 8);
    sqlx::raw_sql("create table t (n int primary key)").execute(&db.pool()).await.expect("a table");
    let add =
        |n: i32| Statement::from_sql_and_values(DbBackend::Postgres, "insert into t values ($1)", [n.into()]);

    let tasks = (0..32).map(|n| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let orm = pool.handle().orm();
            let whole = orm.begin().await?;
            whole.execute_raw(add(n)).await?;
            let undone = whole.begin().await?;
            undone.execute_raw(add(n + 100)).await?;
            undone.rollback().await?;
            let dropped = whole.begin().await?;
            dropped.execute_raw(add(n + 200)).await?;
            drop(dropped);
            whole.commit().await?;
            drop(orm.begin().await?);
            orm.execute_raw(add(n + 1000)).await?;
            Ok::<_, Error>(())
        })
    });
    for task in join_all(tasks).await {
        task.expect("no panic").expect("committed");
    }

    let sum = "select sum(n) = (select sum(n * 2 + 1000) from generate_series(0, 31) n) from t";
    let is_as_expected: bool = sqlx::query_scalar(sum).fetch_one(pool.handle()).await.expect("a sum");
    assert!(is_as_expected);
    assert!(db.sessions().await.expect("sessions").len() <= 2);
    let refused = pool.handle().orm().execute_unprepared("set search_path = pg_catalog").await;
    let refused = Error::from(refused.expect_err("it needs a session of its own"));
    assert!(matches!(refused, Error::Pooler(_)), "{refused:?}");
    let in_transaction = async |tx: &mut db_core::Tx| {
        tx.orm().execute_unprepared("listen a").await?;
        Ok::<_, Error>(())
    };
    let refused = pool.handle().tx(in_transaction).await.expect_err("it needs a session of its own");
    assert!(matches!(refused, Error::Pooler(_)), "{refused:?}");
    assert!(pool.close(PATIENCE).await.is_clean());
}
