//! Facts about pools and transactions that hold on PostgreSQL and on a `Script` of the test kit, so that a test which uses a script
//! proves something about a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{Class, Config, Error, Pool, PoolOptions, TxOptions, TxRetry};
use db_testkit::script::{Reply, Rows, Rule, Script, ServerError};
use db_testkit::{Proxy, TestDb, until};
use sqlx::Executor;

use crate::support::{PATIENCE, config, until_repaired};

/// Makes two tests of each fact: what is there on the server, and what the script answers.
macro_rules! on_both {
    ($($fact:ident: $setup:expr, $rules:expr;)+) => {
        mod on_postgresql {
            use super::*;

            $(
                #[db_testkit::test]
                async fn $fact(db: TestDb) {
                    db.pool().execute($setup).await.expect("what is to be there");
                    super::$fact(pool(&config(&db))).await;
                }
            )+
        }

        mod on_a_script {
            use super::*;

            $(
                #[tokio::test]
                async fn $fact() {
                    let rules: Vec<Rule> = $rules.into();
                    let script = Script::start(rules).expect("a script");
                    super::$fact(pool(&Config::from_url(&script.url()).expect("its address"))).await;
                    script.finish();
                }
            )+
        }
    };
}

const WORDS: &str = "create table word (t text constraint word_once unique)";

on_both! {
    the_bound_value_decides_the_answer: "create table word (n bigint, t text); insert into word values (1, 'one'), (2, 'two')", [
        by_number().bound((1_i64,)).reply(Rows::new(["t"]).row(("one",))),
        by_number().bound((2_i64,)).reply(Rows::new(["t"]).row(("two",))),
        by_number().reply(Rows::<(String,)>::new(["t"])),
    ];
    handles_connections_and_transactions_are_executors: "select", [
        Rule::statement("select 7").reply(Rows::new(["n"]).row((7_i32,))).times(3),
    ];
    an_error_answers_questions: WORDS, [
        insert().nth(1).reply(Reply::tag("INSERT 0 1")),
        insert().nth(2).reply(taken()),
    ];
    a_transaction_in_which_a_statement_failed_does_not_report_success: WORDS, [
        insert().nth(1).reply(Reply::tag("INSERT 0 1")),
        insert().nth(2).reply(taken()),
    ];
    a_savepoint_is_undone_alone: WORDS, [
        insert().nth(1).reply(Reply::tag("INSERT 0 1")),
        insert().nth(2).reply(taken()),
        insert().nth(3).reply(taken()),
        Rule::statement("select count(*) from word").reply(Rows::new(["count"]).row((1_i64,))),
    ];
    hooks_run_after_the_commit_and_never_else: "select", [];
    a_commit_that_is_refused_is_a_definite_failure:
        "create table word (t text); create table child (t text); alter table word add constraint word_once unique (t) \
         deferrable initially deferred", [
        insert().reply(Reply::tag("INSERT 0 1")).times(2),
        Rule::statement("COMMIT").reply(taken()),
    ];
    a_transaction_that_conflicts_twice_runs_three_times:
        "create sequence run; create function work() returns bigint language plpgsql as $$ begin \
           if nextval('run') <= 2 then raise exception 'lost' using errcode = '40001'; end if; return 1; end $$", [
        work().reply(ServerError::new("40001", "lost")).times(2),
        work().reply(Rows::new(["work"]).row((1_i64,))),
    ];
    a_statement_that_takes_too_long_is_cancelled: "select", [
        Rule::statement("select pg_sleep(60)").reply(Reply::silence()),
        Rule::statement("select 7").reply(Rows::new(["n"]).row((7_i32,))),
    ];
    an_exhausted_pool_says_so: "select", [];
    a_session_that_ends_is_replaced: "select", [
        Rule::beginning("do $$").reply(ServerError::new("57P01", "terminating connection").severity("FATAL")),
        Rule::statement("select 7").reply(Rows::new(["n"]).row((7_i32,))),
    ];
}

fn pool(config: &Config) -> Pool {
    Pool::new(config, PoolOptions::api().name("test").max(2).acquire_timeout(Duration::from_millis(500)))
}

fn by_number() -> Rule {
    Rule::statement("select t from word where n = $1")
}

fn insert() -> Rule {
    Rule::statement("insert into word values ($1)").bound(("one",))
}

fn work() -> Rule {
    Rule::statement("select work()")
}

fn taken() -> ServerError {
    ServerError::new("23505", "duplicate key value violates unique constraint \"word_once\"")
        .schema("public")
        .table("word")
        .constraint("word_once")
}

async fn put(executor: impl Executor<'_, Database = sqlx::Postgres>) -> Result<(), Error> {
    sqlx::query("insert into word values ($1)").bind("one").execute(executor).await?;
    Ok(())
}

async fn the_bound_value_decides_the_answer(pool: Pool) {
    let mut words = Vec::new();
    for n in [1_i64, 2, 3] {
        let query = sqlx::query_scalar::<_, String>("select t from word where n = $1").bind(n);
        words.push(query.fetch_optional(pool.handle()).await.expect("an answer"));
    }

    assert_eq!(words, [Some("one".to_owned()), Some("two".to_owned()), None]);
}

async fn handles_connections_and_transactions_are_executors(pool: Pool) {
    let seven = || sqlx::query_scalar::<_, i32>("select 7");

    assert_eq!(seven().fetch_one(pool.handle()).await.expect("an answer"), 7);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    assert_eq!(seven().fetch_one(&mut conn).await.expect("an answer"), 7);
    drop(conn);
    let mut tx = pool.handle().begin().await.expect("a transaction");
    assert_eq!(seven().fetch_one(&mut tx).await.expect("an answer"), 7);
    tx.rollback().await.expect("rolled back");
}

async fn an_error_answers_questions(pool: Pool) {
    put(pool.handle()).await.expect("the first one");

    let error = put(pool.handle()).await.expect_err("a duplicate");

    assert_eq!((error.sqlstate().as_deref(), error.constraint()), (Some("23505"), Some("word_once")));
    assert_eq!(error.class(), Class::Constraint);
}

async fn a_transaction_in_which_a_statement_failed_does_not_report_success(pool: Pool) {
    let result = pool
        .handle()
        .tx(async |tx| {
            put(&mut *tx).await?;
            put(&mut *tx).await.expect_err("a duplicate");
            Ok::<_, Error>(())
        })
        .await;

    assert!(matches!(result, Err(Error::Aborted)), "{result:?}");
}

async fn a_savepoint_is_undone_alone(pool: Pool) {
    let count = pool
        .handle()
        .tx(async |tx| {
            put(&mut *tx).await?;
            let mut savepoint = tx.savepoint().await?;
            put(&mut savepoint).await.expect_err("a duplicate");
            savepoint.rollback().await?;
            let mut dropped = tx.savepoint().await?;
            put(&mut dropped).await.expect_err("a duplicate");
            drop(dropped);
            Ok::<i64, Error>(sqlx::query_scalar("select count(*) from word").fetch_one(&mut *tx).await?)
        })
        .await;

    assert_eq!(count.expect("committed"), 1);
}

async fn hooks_run_after_the_commit_and_never_else(pool: Pool) {
    let ticks = Arc::new(AtomicU32::new(0));
    for commits in [false, true] {
        let ticks = Arc::clone(&ticks);
        let mut tx = pool.handle().begin().await.expect("a transaction");
        tx.after_commit(move || {
            ticks.fetch_add(1, Ordering::SeqCst);
        });
        if commits {
            tx.commit().await.expect("committed");
        } else {
            tx.rollback().await.expect("rolled back");
        }
    }

    assert_eq!(ticks.load(Ordering::SeqCst), 1);
}

async fn a_commit_that_is_refused_is_a_definite_failure(pool: Pool) {
    let mut tx = pool.handle().begin().await.expect("a transaction");
    put(&mut tx).await.expect("it is checked later");
    put(&mut tx).await.expect("it is checked later");

    let error = tx.commit().await.expect_err("a duplicate");

    assert_eq!(error.sqlstate().as_deref(), Some("23505"), "{error}");
    until_repaired(&pool).await;
    pool.ping().await.expect("the connection serves on");
    assert_eq!(pool.stats().totals.dialled, 1);
}

async fn a_transaction_that_conflicts_twice_runs_three_times(pool: Pool) {
    let runs = &AtomicU32::new(0);
    let pause = Duration::from_millis(1);
    let quick = TxRetry::default().min_pause(pause).max_pause(4 * pause).conflict_pause(pause);

    let result = pool
        .handle()
        .tx_retry(TxOptions::default(), quick, || {
            async move |tx| {
                runs.fetch_add(1, Ordering::SeqCst);
                Ok::<i64, Error>(sqlx::query_scalar("select work()").fetch_one(&mut *tx).await?)
            }
        })
        .await;

    assert_eq!((result.expect("the third time"), runs.load(Ordering::SeqCst)), (1, 3));
}

async fn a_statement_that_takes_too_long_is_cancelled(pool: Pool) {
    let sleep = sqlx::query("select pg_sleep(60)").execute(pool.handle());

    let cut_off = tokio::time::timeout(Duration::from_millis(50), sleep).await;

    assert!(cut_off.is_err());
    until("its connection is back", async || pool.stats().repairing == 0 && pool.stats().idle > 0).await;
    let seven: i32 = sqlx::query_scalar("select 7").fetch_one(pool.handle()).await.expect("an answer");
    assert_eq!((seven, pool.stats().totals.dialled), (7, 1), "the same connection");
}

async fn an_exhausted_pool_says_so(pool: Pool) {
    let (_one, _other) = (pool.handle().acquire().await, pool.handle().acquire().await);

    let error = pool.handle().acquire().await.expect_err("both are in use");

    assert!(error.to_string().contains("2 of 2"), "{error}");
}

async fn a_session_that_ends_is_replaced(pool: Pool) {
    let ended = "do $$ begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(60); end $$";

    let error = Error::from(sqlx::query(ended).execute(pool.handle()).await.expect_err("terminated"));

    assert_eq!((error.class(), error.sqlstate().as_deref()), (Class::Lost, Some("57P01")));
    let seven: i32 = sqlx::query_scalar("select 7").fetch_one(pool.handle()).await.expect("an answer");
    assert_eq!(seven, 7);
}

#[tokio::test]
async fn a_script_that_loses_the_answer_to_a_commit_leaves_it_unknown_and_resolvable() {
    let script = Script::builder()
        .in_order([
            Rule::statement("COMMIT").reply(Reply::usual().lost()),
            Rule::statement("COMMIT").reply(Reply::usual().lost()),
            Rule::statement("COMMIT").reply(Reply::cut()),
        ])
        .start()
        .expect("a script");
    let pool = pool(&Config::from_url(&script.url()).expect("its address"));
    let resolving = || TxOptions::default().resolve_commit();

    let unknown = pool.handle().tx(async |_| Ok::<_, Error>(())).await;
    let committed = pool.handle().begin_with(resolving()).await.expect("begun").commit().await;
    let rolled_back = pool.handle().begin_with(resolving()).await.expect("begun").commit().await;

    assert!(matches!(unknown, Err(Error::CommitUnknown(_))), "{unknown:?}");
    committed.expect("the script has committed it");
    assert!(matches!(rolled_back, Err(Error::RolledBack(_))), "{rolled_back:?}");
    script.finish();
}

#[tokio::test]
async fn a_statement_that_no_rule_answers_shows_itself_through_the_pool() {
    let script = Script::start([Rule::statement("select 7").optional()]).expect("a script");
    let proxy = Proxy::to_address(&script.url()).expect("a proxy before a script");
    let pool = pool(&Config::from_url(&proxy.url()).expect("its address"));

    let error = sqlx::query("select 8").execute(pool.handle()).await.expect_err("no rule");

    assert!(error.to_string().contains("no rule of the script answers `select 8`"), "{error}");
    assert!(pool.close(PATIENCE).await.in_time);
    let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| script.finish()));
    assert!(failure.is_err(), "it fails its test");
}
