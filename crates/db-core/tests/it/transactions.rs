//! How transactions end.

use db_core::{Error, Pool};
use db_testkit::TestDb;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;

use crate::support::{open_transactions, pool, until};

async fn table(db: &TestDb) -> Pool {
    let pool = pool(db, 2);
    sqlx::query("create table t (n int primary key)").execute(pool.handle()).await.expect("a table");
    pool
}

async fn count(pool: &Pool) -> i64 {
    sqlx::query_scalar("select count(*) from t").fetch_one(pool.handle()).await.expect("a count")
}

#[derive(Debug, PartialEq)]
struct Refused;

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

#[db_testkit::test]
async fn ok_commits_and_err_rolls_back(db: TestDb) {
    let pool = table(&db).await;

    let value = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            Ok::<_, Error>("done")
        })
        .await;
    assert_eq!(value.expect("committed"), "done");
    assert_eq!(count(&pool).await, 1);

    let refused = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (2)").execute(&mut *tx).await.map_err(Error::from)?;
            Err::<(), _>(Refused)
        })
        .await;
    assert_eq!(refused, Err(Refused), "the error is the closure's own");
    assert_eq!(count(&pool).await, 1);
}

#[db_testkit::test]
async fn a_panic_rolls_back(db: TestDb) {
    let pool = table(&db).await;

    let work = pool.handle().tx(async |tx| {
        sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
        assert!(count(&pool).await == 1, "nobody else sees it: panics");
        Ok::<_, Error>(())
    });
    assert!(AssertUnwindSafe(work).catch_unwind().await.is_err());

    until("no transaction is open", async || open_transactions(&db).await == 0).await;
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_transaction_in_which_a_statement_failed_does_not_report_success(db: TestDb) {
    let pool = table(&db).await;

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            let twice = sqlx::query("insert into t values (1)").execute(&mut *tx).await;
            assert!(twice.is_err(), "a duplicate");
            Ok::<_, Error>(())
        })
        .await;

    assert!(matches!(result, Err(Error::Aborted)), "{result:?}");
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_failure_that_we_did_not_see_is_found_before_the_commit(db: TestDb) {
    let pool = table(&db).await;
    let mut tx = pool.handle().begin().await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    let unseen = sqlx::query("select 1 / 0").execute(tx.as_sqlx()).await;
    assert!(unseen.is_err(), "a division by zero");

    let result = tx.commit().await;

    assert!(matches!(result, Err(Error::Aborted)), "{result:?}");
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_savepoint_of_ones_own_mends_a_failure(db: TestDb) {
    let pool = table(&db).await;

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            sqlx::query("savepoint a").execute(&mut *tx).await?;
            let twice = sqlx::query("insert into t values (1)").execute(&mut *tx).await;
            assert!(twice.is_err(), "a duplicate");
            sqlx::query("rollback to savepoint a").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    assert!(result.is_ok(), "{result:?}");
    assert_eq!(count(&pool).await, 1);
}

#[db_testkit::test]
async fn a_commit_that_the_server_refuses_is_a_definite_failure(db: TestDb) {
    let pool = table(&db).await;
    sqlx::raw_sql("create table child (n int references t deferrable initially deferred)")
        .execute(&db.pool())
        .await
        .expect("a table");

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into child values (7)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    let error = result.expect_err("a child without a parent");
    assert_eq!(error.sqlstate().as_deref(), Some("23503"), "{error}");
    assert_eq!(error.constraint(), Some("child_n_fkey"));
    assert_eq!(count(&pool).await, 0, "and the connection serves on");
}

#[db_testkit::test]
async fn a_link_lost_during_commit_is_said_to_leave_it_open(db: TestDb) {
    let pool = table(&db).await;
    let mut tx = pool.handle().begin().await.expect("begun");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await.expect("a pid");
    sqlx::query("select pg_terminate_backend($1, 5000)").bind(pid).execute(&db.pool()).await.expect("killed");

    let error = tx.commit().await.expect_err("the session is gone");

    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
}

#[db_testkit::test]
async fn errors_answer_questions_and_show_no_values(db: TestDb) {
    let pool = table(&db).await;
    let insert = || sqlx::query("insert into t values (4711)").execute(pool.handle());
    insert().await.expect("the first");

    let duplicate = Error::from(insert().await.expect_err("the second"));
    assert!(duplicate.is_unique_violation() && !duplicate.is_transient());
    assert_eq!(duplicate.constraint(), Some("t_pkey"));

    let missing: Result<i32, _> =
        sqlx::query_scalar("select n from t where n = 0").fetch_one(pool.handle()).await;
    assert!(Error::from(missing.expect_err("no row")).is_not_found());

    let value = sqlx::query("select ($1::text)::int").bind("hunter2").execute(pool.handle()).await;
    let value = Error::from(value.expect_err("no number"));
    assert_eq!(value.sqlstate().as_deref(), Some("22P02"));
    for error in [duplicate, value] {
        let text = error.to_string();
        assert!(!text.contains("hunter2") && !text.contains("4711") && !text.contains("line"), "{text}");
    }
}
