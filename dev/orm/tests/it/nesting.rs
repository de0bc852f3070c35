//! Handles side by side, parts that are dropped, and what an end ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{Class, Error, PoolOptions};
use db_testkit::{TestDb, until};
use futures_util::TryStreamExt;
use orm::cakes::bakery;
use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{DbBackend, Statement, TransactionTrait};

use crate::support;

/// Limit for a wait that has a shorter deadline of its own.
const PATIENCE: Duration = Duration::from_secs(10);

async fn open(db: &impl ConnectionTrait, name: &str) -> Result<(), DbErr> {
    bakery::ActiveModel { name: Set(name.to_owned()), ..Default::default() }.insert(db).await?;
    Ok(())
}

/// Whether it was answered that another one had ended it.
fn is_ended<T: std::fmt::Debug>(result: Result<T, DbErr>) -> bool {
    matches!(Error::from(result.expect_err("it was ended")), Error::Orm(error) if error.is_ended())
}

#[db_testkit::test]
async fn a_transaction_that_its_outer_one_has_ended_says_so_and_ends_nothing(db: TestDb) {
    let pool = support::bakery(&db, 1).await;

    pool.handle()
        .tx(async |tx| {
            let orm = tx.orm();
            let outer = orm.begin().await?;
            let inner = outer.begin().await?;
            open(&inner, "both").await?;
            outer.commit().await?;
            let later = orm.begin().await?;
            open(&later, "later").await?;

            assert!(is_ended(open(&inner, "lost").await));
            assert!(is_ended(inner.begin().await));
            assert!(is_ended(bakery::Entity::find().stream(&inner).await.map(drop)));
            assert!(is_ended(inner.commit().await), "and not the one that was begun later");
            later.commit().await?;

            let outer = orm.begin().await?;
            let inner = outer.begin().await?;
            outer.rollback().await?;
            let later = orm.begin().await?;
            open(&later, "latest").await?;
            drop(inner);
            later.commit().await?;
            Ok::<_, Error>(())
        })
        .await
        .expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 3);
}

#[db_testkit::test]
async fn a_savepoint_of_an_ended_transaction_does_not_belong_to_the_next_one(db: TestDb) {
    let pool = support::bakery(&db, 2).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let orm = conn.orm();
    let first = orm.begin().await.expect("begun");
    let inner = first.begin().await.expect("a savepoint");
    first.commit().await.expect("committed");

    let second = orm.begin().await.expect("begun");
    let kept = second.begin().await.expect("a savepoint of the same number");
    open(&kept, "kept").await.expect("an insert");
    assert!(is_ended(open(&inner, "lost").await));
    drop(inner);
    kept.commit().await.expect("released");
    second.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
}

#[db_testkit::test]
async fn a_savepoint_whose_transaction_was_dropped_is_ended_and_undone(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let outer = pool.handle().orm().begin().await.expect("begun");
    let inner = outer.begin().await.expect("a savepoint");
    open(&inner, "undone").await.expect("an insert");

    drop(outer);
    assert!(is_ended(open(&inner, "lost").await));
    drop(inner);

    assert_eq!(support::count(pool.handle(), "bakery").await, 0);
}

#[db_testkit::test]
async fn a_dropped_transaction_whose_statement_was_abandoned_is_undone_before_the_next_statement(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let orm = conn.orm();
    let begun = orm.begin().await.expect("begun");
    open(&begun, "undone").await.expect("an insert");

    let sleep = begun.query_one_raw(Statement::from_string(DbBackend::Postgres, "select pg_sleep(60)"));
    tokio::time::timeout(Duration::from_millis(100), sleep).await.expect_err("abandoned");
    drop(begun);

    assert_eq!(bakery::Entity::find().count(&orm).await.expect("a count"), 0);
}

#[db_testkit::test]
async fn a_transaction_that_a_loan_has_committed_runs_no_other_statement(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let tx = pool.handle().orm().begin().await.expect("begun");
    open(&tx, "kept").await.expect("an insert");

    let mut session = tx.session().await.expect("its session");
    let lent = session.as_sqlx_without_reset().await.expect("lent");
    sqlx::raw_sql("commit").execute(lent).await.expect("committed");
    drop(session);

    for refused in [open(&tx, "lost").await, open(&tx, "lost").await, tx.begin().await.map(drop)] {
        let error = Error::from(refused.expect_err("there is no transaction"));
        assert!(matches!(error, Error::Lent(_)), "{error:?}");
    }
    let error = Error::from(tx.commit().await.expect_err("there is no transaction"));
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
}

#[db_testkit::test]
async fn a_committed_transaction_gives_its_connection_back_while_an_inner_one_is_held(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let outer = pool.handle().orm().begin().await.expect("begun");
    let inner = outer.begin().await.expect("a savepoint");
    open(&inner, "kept").await.expect("an insert");
    outer.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
    assert!(is_ended(open(&inner, "lost").await));
}

#[db_testkit::test]
async fn a_savepoint_that_is_dropped_while_a_stream_has_the_session_is_undone_after_the_stream(db: TestDb) {
    let pool = support::bakery(&db, 1).await;

    pool.handle()
        .tx(async |tx| {
            let orm = tx.orm();
            open(&orm, "kept").await?;
            let part = orm.begin().await?;
            open(&part, "undone").await?;
            let mut rows = bakery::Entity::find().stream(&orm).await?;
            rows.try_next().await?;
            drop(part);
            rows.try_next().await?;
            drop(rows);

            assert_eq!(bakery::Entity::find().count(&orm).await?, 1);
            Ok::<_, Error>(())
        })
        .await
        .expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
}

#[db_testkit::test]
async fn a_dropped_savepoint_is_undone_by_the_next_statement_of_sqlx_and_by_the_commit(db: TestDb) {
    let pool = support::bakery(&db, 1).await;

    for counts_between in [true, false] {
        let mut tx = pool.handle().begin().await.expect("begun");
        let orm = tx.orm();
        let part = orm.begin().await.expect("a savepoint");
        open(&part, "undone").await.expect("an insert");
        drop(part);
        if counts_between {
            let count: i64 =
                sqlx::query_scalar("select count(*) from bakery").fetch_one(&mut *tx).await.expect("a count");
            assert_eq!(count, 0);
        }
        tx.commit().await.expect("committed");
        assert_eq!(support::count(pool.handle(), "bakery").await, 0);
    }
}

#[db_testkit::test]
async fn hooks_go_with_their_part(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let ran = Arc::new(AtomicU32::new(0));
    let hook = |by: u32| {
        let ran = Arc::clone(&ran);
        move || {
            ran.fetch_add(by, Ordering::Relaxed);
        }
    };

    let mut tx = pool.handle().begin().await.expect("begun");
    let orm = tx.orm();
    let kept = orm.begin().await.expect("a savepoint");
    kept.session().await.expect("its session").after_commit(hook(1));
    kept.commit().await.expect("released");
    let undone = orm.begin().await.expect("a savepoint");
    undone.session().await.expect("its session").after_commit(hook(10));
    drop(undone);
    // Given after the part was dropped, it is none of that part's.
    tx.after_commit(hook(100));
    tx.commit().await.expect("committed");
    assert_eq!(ran.load(Ordering::Relaxed), 101);

    let own = pool.handle().orm().begin().await.expect("begun");
    own.session().await.expect("its session").after_commit(hook(1000));
    own.commit().await.expect("committed");
    assert_eq!(ran.load(Ordering::Relaxed), 1101);

    let mut conn = pool.handle().acquire().await.expect("a connection");
    drop(conn.orm().begin().await.expect("begun"));
    // The transaction that is still to be undone is over for the program.
    conn.after_commit(hook(10_000));
    assert_eq!(ran.load(Ordering::Relaxed), 11_101);
}

#[db_testkit::test]
async fn statements_side_by_side_take_turns_on_the_session(db: TestDb) {
    let pool = support::bakery(&db, 1).await;

    pool.handle()
        .tx(async |tx| {
            let orm = tx.orm();
            let (a, b, c) = tokio::join!(open(&orm, "a"), open(&orm, "b"), open(&orm, "c"));
            a.and(b).and(c)?;
            Ok::<_, Error>(())
        })
        .await
        .expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 3);
}

#[db_testkit::test]
async fn a_statement_that_waits_for_the_stream_that_waits_for_it_fails_in_time(db: TestDb) {
    let options = PoolOptions::api().max(1).statement_timeout(Duration::from_millis(300));
    let pool = support::pool_with(&db, options);
    orm::cakes::create_tables(&pool.handle().orm()).await.expect("tables");

    let mut tx = pool.handle().begin().await.expect("begun");
    let (orm, line) = (tx.orm(), line!());
    open(&orm, "read").await.expect("an insert");
    let mut rows = bakery::Entity::find().stream(&orm).await.expect("a stream");
    rows.try_next().await.expect("a row");
    let never = tokio::time::timeout(PATIENCE, open(&orm, "never")).await.expect("it has a deadline");
    let error = Error::from(never.expect_err("the stream has the session"));
    assert!(matches!(error, Error::Deadline(_)), "{error:?}");
    assert_eq!(error.class(), Class::TimedOut);
    let text = error.to_string();
    assert!(
        text.contains("a stream that is still open") && text.contains(&format!("nesting.rs:{line})")),
        "{text}"
    );
    drop(rows);
    open(&orm, "after it").await.expect("an insert");
    tx.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 2);
}

#[db_testkit::test]
async fn a_closure_that_takes_longer_than_a_transaction_may_is_undone(db: TestDb) {
    let options = PoolOptions::api().max(1).tx_timeout(Duration::from_millis(300));
    let pool = support::pool_with(&db, options);
    orm::cakes::create_tables(&pool.handle().orm()).await.expect("tables");

    let orm = pool.handle().orm();
    let by_async = orm.transaction_async::<_, (), DbErr>(async |tx| {
        open(tx, "undone").await?;
        std::future::pending().await
    });
    let by_async = tokio::time::timeout(PATIENCE, by_async).await.expect("it has a deadline");
    let boxed = orm.transaction::<_, (), DbErr>(|tx| {
        Box::pin(async move {
            open(tx, "undone, too").await?;
            std::future::pending().await
        })
    });
    let boxed = tokio::time::timeout(PATIENCE, boxed).await.expect("it has a deadline");

    for late in [by_async, boxed] {
        let error = Error::from(late.expect_err("late"));
        assert!(matches!(&error, Error::Deadline(late) if late.is_transaction()), "{error:?}");
    }
    until("its connection is back", async || pool.stats().in_use == 0 && pool.stats().repairing == 0).await;
    assert_eq!(support::count(pool.handle(), "bakery").await, 0);
}

#[db_testkit::test]
async fn a_commit_after_a_failed_statement_says_that_nothing_is_stored(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let tx = pool.handle().orm().begin().await.expect("begun");
    open(&tx, "undone").await.expect("an insert");
    tx.execute_unprepared("select 1/0").await.expect_err("a division by zero");

    let error = Error::from(tx.commit().await.expect_err("PostgreSQL itself would say nothing"));

    assert!(matches!(error, Error::Aborted), "{error:?}");
    assert_eq!(support::count(pool.handle(), "bakery").await, 0);
}
