//! The consequences of errors: whether the session is kept, whether other sessions are checked, and whether the work is repeated.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{Class, CloseReason, Config, Conn, Error, Pool, Repeat, TxOptions, TxRetry};
use db_testkit::{Proxy, TestDb};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{Encode, Executor, Postgres, SqlSafeStr, Type};

use crate::support::{patient_pool, take};

/// More bind values than a statement can have.
const TOO_MANY: usize = 70_000;

fn quick() -> TxRetry {
    let pause = Duration::from_millis(1);
    TxRetry::default().retries(3).min_pause(pause).max_pause(pause).conflict_pause(pause)
}

type Question = Query<'static, Postgres, sqlx::postgres::PgArguments>;

/// A value of a type that the database does not have.
struct Unknown;

impl Type<Postgres> for Unknown {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("there_is_no_such_type")
    }
}

impl Encode<'_, Postgres> for Unknown {
    fn encode_by_ref(&self, _: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::Yes)
    }
}

/// A value that cannot be encoded.
struct Broken;

impl Type<Postgres> for Broken {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("text")
    }
}

impl Encode<'_, Postgres> for Broken {
    fn encode_by_ref(&self, _: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Err("it cannot be encoded".into())
    }
}

fn too_many() -> Question {
    (0..TOO_MANY).fold(sqlx::query("select 1"), |query, _| query.bind(1))
}

fn no_such_type() -> Question {
    sqlx::query("select $1").bind(Unknown)
}

fn not_encoded() -> Question {
    sqlx::query("select $1").bind(Broken)
}

#[db_testkit::test]
async fn an_error_before_sending_keeps_the_connection_and_is_not_repeated(db: TestDb) {
    let pool = patient_pool(&db, 2);
    drop(take(&pool, 2).await);
    for question in [too_many, no_such_type, not_encoded] {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let pid = conn.pid();
        let error = Error::from(question().execute(&mut conn).await.expect_err("refused"));
        assert_eq!((error.class(), error.repeat()), (Class::Misuse, Repeat::Never), "{error}");
        assert!(!error.is_transient() && error.retry_after().is_none(), "{error}");
        answers(&mut conn).await;
        drop(conn);
        assert_eq!(pool.handle().acquire().await.expect("the same connection").pid(), pid, "{error}");

        let runs = Cell::new(0);
        let result = quick()
            .run(async || {
                runs.set(runs.get() + 1);
                question().execute(pool.handle()).await?;
                Ok::<_, Error>(())
            })
            .await;
        assert!(result.is_err() && runs.get() == 1, "{}: {error}", runs.get());
    }
    let totals = pool.stats().totals;
    assert_eq!(
        (totals.closed.of(CloseReason::Lost), totals.dialled, totals.repaired),
        (0, 2, 0),
        "{totals:?}"
    );
}

#[db_testkit::test]
async fn an_error_before_sending_does_not_fail_a_transaction(db: TestDb) {
    let pool = patient_pool(&db, 1);
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let mut tx = pool.handle().begin().await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");

    for question in [too_many, no_such_type, not_encoded] {
        question().execute(&mut tx).await.expect_err("refused");
    }
    sqlx::query("insert into t values (2)").execute(&mut tx).await.expect("inserted");
    tx.commit().await.expect("committed");

    let rows: i64 =
        sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count");
    assert_eq!((rows, pool.stats().totals.closed.of(CloseReason::Lost)), (2, 0));
}

#[db_testkit::test]
async fn preparing_with_too_many_types_keeps_the_connection(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let pid = conn.pid();
    let types = vec![PgTypeInfo::with_name("text"); TOO_MANY];

    let error = conn.prepare_with("select 1".into_sql_str(), &types).await.expect_err("refused");

    assert_eq!(Class::of(&error), Class::Misuse, "{error}");
    answers(&mut conn).await;
    drop(conn);
    assert_eq!(pool.handle().acquire().await.expect("a connection").pid(), pid);
}

#[db_testkit::test]
async fn a_copy_run_as_a_query_loses_its_own_session_only(db: TestDb) {
    let pool = patient_pool(&db, 2);
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let other = take(&pool, 2).await.remove(0).pid();
    for sql in ["copy t from stdin", "copy t to stdout"] {
        let lost = pool.stats().totals.closed.of(CloseReason::Lost);
        let mut both = take(&pool, 2).await;
        both.retain(|conn| conn.pid() != other);
        let mut conn = both.remove(0);
        let error = Error::from(sqlx::query(sql).execute(&mut conn).await.expect_err("no query"));
        drop(conn);

        assert_eq!((error.class(), error.is_transient()), (Class::Misuse, false), "{error}");
        for mut conn in take(&pool, 2).await {
            answers(&mut conn).await;
        }
        assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), lost, "{sql}");
    }
    assert!(take(&pool, 2).await.iter().any(|conn| conn.pid() == other), "the other connection is kept");
}

/// Checks that the next statement gets its own answer.
async fn answers(conn: &mut Conn) {
    let number = fastrand::i64(..);
    let answer: i64 =
        sqlx::query_scalar("select $1::int8").bind(number).fetch_one(conn).await.expect("an answer");
    assert_eq!(answer, number);
}

/// A table whose commits fail with a code that ends the session.
async fn fatal_commits(db: &TestDb) {
    sqlx::raw_sql(
        "create table t (code text);
         create function refuse() returns trigger language plpgsql as
           $$ begin raise exception 'no' using errcode = new.code; end $$;
         create constraint trigger refuse after insert on t deferrable initially deferred
           for each row execute function refuse()",
    )
    .execute(&db.pool())
    .await
    .expect("a trigger");
}

async fn insert(tx: &mut db_core::Tx, code: &'static str, fatal: bool) -> Result<(), Error> {
    if fatal {
        // The server makes each error fatal.
        sqlx::query("select set_config('exit_on_error', 'on', true)").execute(&mut *tx).await?;
    }
    sqlx::query("insert into t values ($1)").bind(code).execute(&mut *tx).await?;
    Ok(())
}

#[db_testkit::test]
async fn a_fatal_error_during_a_commit_leaves_its_outcome_unknown_whatever_the_code(db: TestDb) {
    fatal_commits(&db).await;
    let pool = patient_pool(&db, 1);
    for code in ["XX000", "58030", "57P01", "23505", "40001", "22012", "08P01"] {
        let result = pool.handle().tx(async |tx| insert(tx, code, true).await).await;
        assert!(matches!(result, Err(Error::CommitUnknown(_))), "{code}: {result:?}");

        // The session continues, so the server has refused the commit.
        let result = pool.handle().tx(async |tx| insert(tx, code, false).await).await;
        assert!(
            matches!(&result, Err(error @ Error::Statement(_)) if error.sqlstate().as_deref() == Some(code)),
            "{result:?}"
        );

        // With `resolve_commit`, the server is asked, and knows the outcome.
        let options = TxOptions::default().resolve_commit();
        let result = pool.handle().tx_with(options, async |tx| insert(tx, code, true).await).await;
        assert!(matches!(result, Err(Error::RolledBack(_))), "{code}: {result:?}");
    }
}

#[db_testkit::test]
async fn a_transaction_is_not_repeated_after_a_fatal_error_during_its_commit(db: TestDb) {
    fatal_commits(&db).await;
    let pool = patient_pool(&db, 1);
    let runs = &AtomicU32::new(0);

    let result = pool
        .handle()
        .tx_retry(TxOptions::default(), quick(), || {
            async move |tx| {
                runs.fetch_add(1, Ordering::SeqCst);
                insert(tx, "40001", true).await
            }
        })
        .await;

    assert!(matches!(result, Err(Error::CommitUnknown(_))), "{result:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[db_testkit::test]
async fn a_commit_of_unknown_outcome_is_not_repeated(db: TestDb) {
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let proxy = Proxy::start(&db).expect("a proxy");
    let pool = Pool::new(
        &Config::from_url(&proxy.url()).expect("the proxy's address"),
        db_core::PoolOptions::api().max(1),
    );
    proxy.cut_answer_to("COMMIT");
    let runs = Cell::new(0);

    let result = quick()
        .run(async || {
            runs.set(runs.get() + 1);
            pool.handle()
                .tx(async |tx| {
                    sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
                    Ok::<_, Error>(())
                })
                .await
        })
        .await;

    let error = result.expect_err("no answer");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!((error.repeat(), error.retry_after()), (Repeat::IfHarmless, None));
    let rows: i64 =
        sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count");
    assert_eq!((runs.get(), rows), (1, 1));
}

#[db_testkit::test]
async fn a_statement_that_may_have_taken_effect_has_no_retry_after(db: TestDb) {
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let pool = Pool::new(&config, db_core::PoolOptions::api().max(1));
    proxy.cut_answer_to("insert into t");

    let lost = sqlx::query("insert into t values (1)").execute(pool.handle()).await.expect_err("no answer");

    let error = Error::from(lost);
    assert_eq!((error.class(), error.repeat()), (Class::Lost, Repeat::IfHarmless), "{error}");
    assert_eq!(error.retry_after(), None);
}

#[db_testkit::test]
async fn the_first_failure_decides_whether_a_transaction_is_repeated(db: TestDb) {
    let pool = patient_pool(&db, 1);
    // Through a statement, through a savepoint, and through a raw text.
    for after in 0..3 {
        for (code, expected) in [("40001", 2), ("23505", 1)] {
            let runs = &AtomicU32::new(0);
            let result = pool
                .handle()
                .tx_retry(TxOptions::default(), quick(), || {
                    async move |tx| {
                        if runs.fetch_add(1, Ordering::SeqCst) > 0 {
                            return Ok(());
                        }
                        let raise =
                            format!("do $$ begin raise exception 'x' using errcode = '{code}'; end $$");
                        let raise = sqlx::raw_sql(sqlx::AssertSqlSafe(raise));
                        // The closure ignores the error.
                        raise.execute(&mut *tx).await.expect_err("raised");
                        let hidden = match after {
                            0 => Error::from(
                                sqlx::query("select 1").execute(&mut *tx).await.expect_err("25P02"),
                            ),
                            1 => tx.savepoint().await.map(drop).expect_err("25P02"),
                            _ => Error::from(
                                sqlx::raw_sql("set local work_mem = '1MB'")
                                    .execute(&mut *tx)
                                    .await
                                    .expect_err("25P02"),
                            ),
                        };
                        assert_eq!(hidden.sqlstate().as_deref(), Some("25P02"), "{hidden}");
                        Err(hidden)
                    }
                })
                .await;

            assert_eq!(runs.load(Ordering::SeqCst), expected, "{code} {after}: {result:?}");
            assert_eq!(result.is_ok(), expected == 2, "{code} {after}: {result:?}");
        }
    }
}
