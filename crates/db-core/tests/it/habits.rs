//! Code in the style of repositories written for `PgPool`: it compiles here, and costs what the guide says.

use std::future::Future;
use std::pin::Pin;

use db_core::{Error, Handle, Pool, Session, Tx};
use db_testkit::{Session as Seen, TestDb, poll_then_drop};
use futures_util::future::join_all;
use sqlx::postgres::PgConnection;
use sqlx::{Acquire, PgExecutor, Postgres};

use crate::support::{patient_pool, until_repaired};

async fn table(db: &TestDb, max: u32) -> Pool {
    let pool = patient_pool(db, max);
    sqlx::query("create table t (n int primary key)").execute(&pool).await.expect("a table");
    pool
}

/// The stored numbers, as another session sees them.
async fn stored(db: &TestDb) -> Vec<i32> {
    sqlx::query_scalar("select n from t order by n").fetch_all(&db.pool()).await.expect("numbers")
}

/// A repository of functions on the driver's connection.
mod on_a_connection {
    use super::*;

    pub(super) async fn add(conn: &mut PgConnection, n: i32) -> sqlx::Result<()> {
        sqlx::query("insert into t values ($1)").bind(n).execute(&mut *conn).await?;
        Ok(())
    }

    pub(super) async fn add_all(conn: &mut PgConnection, all: &[i32]) -> sqlx::Result<()> {
        let mut tx = Acquire::begin(conn).await?;
        for n in all {
            add(&mut tx, *n).await?;
        }
        tx.commit().await
    }
}

/// A repository whose functions run a single statement each.
mod on_an_executor {
    use super::*;

    pub(super) async fn count(db: impl PgExecutor<'_>) -> sqlx::Result<i64> {
        sqlx::query_scalar("select count(*) from t").fetch_one(db).await
    }
}

/// A repository that begins its own transactions.
mod on_an_acquire {
    use super::*;

    pub(super) async fn add_both<'c>(
        db: impl Acquire<'c, Database = Postgres>,
        first: i32,
        second: i32,
    ) -> sqlx::Result<()> {
        let mut tx = db.begin().await?;
        sqlx::query("insert into t values ($1)").bind(first).execute(&mut *tx).await?;
        sqlx::query("insert into t values ($1)").bind(second).execute(&mut *tx).await?;
        tx.commit().await
    }
}

/// A unit of work that is passed down.
mod of_units {
    use super::*;

    pub(super) async fn order(tx: &mut Tx) -> Result<(), Error> {
        lines(tx, 2).await
    }

    async fn lines(db: &mut Session, count: i32) -> Result<(), Error> {
        for n in 0..count {
            line(db, n).await?;
        }
        Ok(())
    }

    async fn line(db: &mut Session, n: i32) -> Result<(), Error> {
        sqlx::query("insert into t values ($1)").bind(n).execute(&mut *db).await?;
        Ok(())
    }
}

/// A repository behind a trait, so that a service can be tested without a database.
trait Numbers: Send + Sync {
    fn add<'a>(
        &'a self,
        db: &'a mut Session,
        n: i32,
    ) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;
}

struct Stored;

impl Numbers for Stored {
    fn add<'a>(
        &'a self,
        db: &'a mut Session,
        n: i32,
    ) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> {
        Box::pin(async move {
            sqlx::query("insert into t values ($1)").bind(n).execute(db).await?;
            Ok(())
        })
    }
}

#[db_testkit::test]
async fn a_function_on_the_drivers_connection(db: TestDb) {
    let pool = table(&db, 1).await;

    let mut conn = pool.handle().acquire().await.expect("a connection");
    on_a_connection::add(conn.as_sqlx_without_reset().await.expect("lent"), 1).await.expect("added");
    drop(conn);
    pool.handle()
        .tx(async |tx| {
            on_a_connection::add(tx.as_sqlx_without_reset().await?, 2).await?;
            tx.nested(async |part| {
                on_a_connection::add(part.as_sqlx_without_reset().await?, 3).await?;
                Ok::<_, Error>(())
            })
            .await
        })
        .await
        .expect("committed");

    assert_eq!(stored(&db).await, [1, 2, 3]);
}

#[db_testkit::test]
async fn a_function_on_an_executor(db: TestDb) {
    let pool = table(&db, 1).await;
    let handle: Handle = pool.handle();

    let mut counts = vec![
        on_an_executor::count(&pool).await,
        on_an_executor::count(&handle).await,
        on_an_executor::count(pool.handle()).await,
        on_an_executor::count(&mut handle.acquire().await.expect("a connection")).await,
    ];
    let mut tx = pool.handle().begin().await.expect("begun");
    counts.push(on_an_executor::count(&mut tx).await);
    counts.push(on_an_executor::count(&mut tx.savepoint().await.expect("a savepoint")).await);
    let session: &mut Session = &mut tx;
    counts.push(on_an_executor::count(session).await);

    assert!(counts.iter().all(|count| matches!(count, Ok(0))), "{counts:?}");
}

#[db_testkit::test]
async fn a_unit_of_work_passed_down_three_functions(db: TestDb) {
    let pool = table(&db, 1).await;

    let mut tx = pool.handle().begin().await.expect("begun");
    of_units::order(&mut tx).await.expect("ordered");
    tx.commit().await.expect("committed");

    assert_eq!(stored(&db).await, [0, 1]);
}

#[db_testkit::test]
async fn many_connections_at_once(db: TestDb) {
    let pool = table(&db, 3).await;

    let acquired = join_all((0..3).map(|_| pool.handle().acquire())).await;

    assert!(acquired.iter().all(Result::is_ok), "{acquired:?}");
}

#[db_testkit::test]
async fn a_boxed_repository(db: TestDb) {
    let pool = table(&db, 1).await;
    let numbers: Box<dyn Numbers> = Box::new(Stored);

    let added = tokio::spawn(async move {
        let numbers = &numbers;
        let mut conn = pool.handle().acquire().await?;
        numbers.add(&mut conn, 1).await?;
        conn.begin().await?.nested(async |part| numbers.add(part, 2).await).await?;
        pool.handle().tx(async |tx| numbers.add(tx, 3).await).await
    });

    added.await.expect("no panic").expect("added");
    assert_eq!(stored(&db).await, [1, 3]);
}

#[db_testkit::test]
async fn sqlx_begin_in_a_transaction_creates_a_savepoint(db: TestDb) {
    let pool = table(&db, 1).await;
    for reset in [false, true] {
        let mut tx = pool.handle().begin().await.expect("begun");
        sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("added");
        let raw = if reset { tx.as_sqlx().await } else { tx.as_sqlx_without_reset().await };
        on_an_acquire::add_both(raw.expect("lent"), 2, 3).await.expect("added");
        assert_eq!(stored(&db).await, [0; 0], "the inner commit has not ended the transaction");
        let raw = if reset { tx.as_sqlx().await } else { tx.as_sqlx_without_reset().await };
        on_a_connection::add_all(raw.expect("lent"), &[4, 2]).await.expect_err("a duplicate");
        sqlx::query("insert into t values (5)").execute(&mut tx).await.expect("the savepoint was undone");
        tx.rollback().await.expect("rolled back");
        assert_eq!(stored(&db).await, [0; 0], "nothing is stored");

        let mut tx = pool.handle().begin().await.expect("begun");
        let raw = if reset { tx.as_sqlx().await } else { tx.as_sqlx_without_reset().await };
        on_an_acquire::add_both(raw.expect("lent"), 2, 3).await.expect("added");
        tx.commit().await.expect("committed");
        assert_eq!(stored(&db).await, [2, 3], "stored with the transaction");
        sqlx::query("delete from t").execute(&pool).await.expect("deleted");
    }
}

#[db_testkit::test]
async fn sqlx_begin_outside_a_transaction_begins_one_even_after_a_loan_in_a_transaction(db: TestDb) {
    let pool = table(&db, 1).await;
    for first in [10, 20, 30] {
        let mut tx = pool.handle().begin().await.expect("begun");
        let raw = tx.as_sqlx_without_reset().await.expect("lent");
        on_an_acquire::add_both(raw, first, first + 1).await.expect("added");
        tx.commit().await.expect("committed");
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let raw = conn.as_sqlx_without_reset().await.expect("lent");
        on_an_acquire::add_both(raw, first + 2, first + 3).await.expect("added");
        assert_eq!(stored(&db).await.len() % 4, 0, "committed by the inner commit");
    }
    until_repaired(&pool).await;
    assert_eq!(pool.stats().totals.repair_failed, 0, "no connection was closed");
}

#[db_testkit::test]
async fn sqlx_begin_after_a_raw_begin_creates_a_savepoint(db: TestDb) {
    let pool = table(&db, 1).await;
    // The driver's count of open transactions is still one after this loan.
    let mut tx = pool.handle().begin().await.expect("begun");
    tx.as_sqlx_without_reset().await.expect("lent");
    tx.commit().await.expect("committed");

    let mut conn = pool.handle().acquire().await.expect("a connection");
    sqlx::query("begin").execute(&mut conn).await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut conn).await.expect("added");
    let raw = conn.as_sqlx_without_reset().await.expect("lent");
    on_an_acquire::add_both(raw, 2, 3).await.expect("added");
    assert_eq!(stored(&db).await, [0; 0]);
    sqlx::query("rollback").execute(&mut conn).await.expect("rolled back");
    assert_eq!(stored(&db).await, [0; 0]);
}

#[db_testkit::test]
async fn a_dropped_sqlx_begin_does_not_lead_to_a_false_commit(db: TestDb) {
    let pool = table(&db, 1).await;
    for polls in 0.. {
        let mut tx = pool.handle().begin().await.expect("begun");
        sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("added");
        let work = async {
            let raw = tx.as_sqlx_without_reset().await?;
            on_an_acquire::add_both(raw, 2, 3).await.map_err(Error::from)
        };
        let done = poll_then_drop(work, polls).await;
        let next = sqlx::query("insert into t values (4)").execute(&mut tx).await;
        let committed = tx.commit().await;

        let expected: &[i32] = match (&next, &committed, done.is_some()) {
            (Ok(_), Ok(()), true) => &[1, 2, 3, 4],
            (Ok(_), Ok(()), false) => &[1, 4],
            (Err(_), Err(_), false) => &[],
            _ => panic!("{polls} polls: {next:?}, {committed:?}"),
        };
        let stored = stored(&db).await;
        let whole = [1, 2, 3, 4];
        // The server may have released a savepoint whose release was dropped.
        assert!(stored == expected || !expected.is_empty() && stored == whole, "{polls} polls: {stored:?}");
        if done.is_some() {
            break;
        }
        sqlx::query("delete from t").execute(&pool).await.expect("deleted");
    }
}

#[db_testkit::test]
async fn a_loan_without_a_reset_keeps_prepared_statements_and_queries_the_status(db: TestDb) {
    let pool = table(&db, 1).await;
    let prepared = "select count(*) from pg_prepared_statements where statement like 'insert into t%'";
    let last = async |pid: i32| -> String {
        let sessions = db.sessions().await.expect("sessions");
        let of = |seen: &&Seen| seen.pid == pid;
        sessions.iter().find(of).map(|seen| seen.query.clone()).expect("the session")
    };
    for (n, reset) in [(1, false), (2, true)] {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let pid = conn.pid();
        let raw = if reset { conn.as_sqlx().await } else { conn.as_sqlx_without_reset().await };
        on_a_connection::add(raw.expect("lent"), n).await.expect("added");
        drop(conn);
        until_repaired(&pool).await;

        let last_query = last(pid).await;
        let mut conn = pool.handle().acquire().await.expect("a connection");
        assert_eq!(conn.pid(), pid, "the same connection");
        let kept: i64 = sqlx::query_scalar(prepared).fetch_one(&mut conn).await.expect("a count");
        assert_eq!(kept, i64::from(!reset), "reset: {reset}");
        assert_eq!(
            last_query.contains("statement_timestamp"),
            !reset,
            "the last statement was the status query: {last_query}"
        );
    }
}

#[db_testkit::test]
async fn a_transaction_that_a_loan_without_a_reset_leaves_open_is_found(db: TestDb) {
    let pool = table(&db, 1).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let raw = conn.as_sqlx_without_reset().await.expect("lent");
    std::mem::forget(Acquire::begin(raw).await.expect("begun"));

    let next = sqlx::query("insert into t values (1)").execute(&mut conn).await;

    let error = Error::from(next.expect_err("not sent"));
    assert!(matches!(error, Error::Lent(_)), "{error}");
    drop(conn);
    assert_eq!(on_an_executor::count(&pool).await.expect("repaired"), 0);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let raw = conn.as_sqlx_without_reset().await.expect("lent");
    on_an_acquire::add_both(raw, 2, 3).await.expect("added");
    assert_eq!(stored(&db).await, [2, 3], "a transaction of its own");
}
