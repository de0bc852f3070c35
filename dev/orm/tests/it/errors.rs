//! Errors on their way through `SeaORM` and back, and what goes wrong with entities.

use std::time::Duration;

use axum::http::StatusCode;
use db_core::{Class, Error, PoolOptions, Repeat};
use db_testkit::{TestDb, poll_then_drop};
use orm::blog::user;
use orm::cakes::{bakery, cake};
use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{ConnAcquireErr, DbBackend, RuntimeErr, Statement, TransactionTrait};

use crate::support;

fn named(name: &str) -> bakery::ActiveModel {
    bakery::ActiveModel { name: Set(name.to_owned()), ..Default::default() }
}

/// Says the same of an error on each way through `SeaORM`: as it is, shared, and there and back again.
fn is_the_same(error: DbErr, is_what: impl Fn(&Error) -> bool) {
    let shared = error.clone();
    let ours =
        [Error::from(shared.clone()), Error::from(DbErr::from(Error::from(shared))), Error::from(error)];
    for (at, ours) in ours.iter().enumerate() {
        assert!(is_what(ours), "{at}: {ours:?}");
    }
}

#[db_testkit::test]
async fn a_constraint_keeps_its_class_its_code_and_its_name_both_ways(db: TestDb) {
    let pool = support::blog(&db, 1).await;
    let orm = pool.handle().orm();
    let ann = || user::ActiveModel {
        name: Set("Ann".to_owned()),
        email: Set("ann".to_owned()),
        ..Default::default()
    };
    ann().insert(&orm).await.expect("the first");

    let error = ann().insert(&orm).await.expect_err("the second");

    assert!(matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))), "{error:?}");
    let back = DbErr::from(Error::from(error.clone()));
    assert!(matches!(back.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))), "{back:?}");
    assert_eq!(db_axum::Error::from(error.clone()).status(), StatusCode::CONFLICT);
    is_the_same(error, |error| {
        error.is_unique_violation()
            && error.class() == Class::Constraint
            && error.sqlstate().as_deref() == Some("23505")
            && error.constraint() == Some("user_email_key")
    });
}

#[db_testkit::test]
async fn an_error_of_the_pool_keeps_what_it_knows(db: TestDb) {
    let options = PoolOptions::api().max(1);
    let pool = support::pool_with(&db, options);
    let _held = pool.handle().acquire().await.expect("the only one");

    let orm = pool.handle().acquire_timeout(Duration::from_millis(50)).orm();
    let error = cake::Entity::find().all(&orm).await.expect_err("no connection");

    assert_eq!(db_axum::Error::from(error.clone()).status(), StatusCode::SERVICE_UNAVAILABLE);
    is_the_same(error, |error| {
        matches!(error, Error::Acquire(acquire) if acquire.stats().in_use == 1)
            && error.class() == Class::NotReached
            && error.retry_after().is_some()
            && error.to_string().contains("errors.rs:")
    });
}

#[db_testkit::test]
async fn an_error_of_a_closed_pool_is_final(db: TestDb) {
    let pool = support::pool(&db, 1);
    pool.close(Duration::from_secs(5)).await;

    let error = cake::Entity::find().all(&pool.handle().orm()).await.expect_err("closed");

    is_the_same(error, |error| {
        matches!(error, Error::Acquire(acquire) if acquire.is_closed()) && error.repeat() == Repeat::Never
    });
}

#[test]
fn errors_that_are_no_statements_come_back_as_they_were() {
    for error in
        [Error::Aborted, Error::Config(db_core::Config::from_url("nonsense").expect_err("no address"))]
    {
        let text = error.to_string();
        is_the_same(DbErr::from(error.clone()), |back| {
            std::mem::discriminant(back) == std::mem::discriminant(&error)
                && back.class() == error.class()
                && back.retry_after() == error.retry_after()
                && back.to_string() == text
        });
    }
}

#[test]
fn a_pool_of_sea_orms_own_that_was_full_is_worth_another_try() {
    let full = DbErr::ConnectionAcquire(ConnAcquireErr::Timeout);
    is_the_same(full, |error| error.class() == Class::NotReached && error.retry_after().is_some());
    let closed = DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed);
    is_the_same(closed, |error| error.repeat() == Repeat::Never);
}

#[test]
fn an_error_of_sea_orms_own_is_the_same_after_the_way_there_and_back() {
    let back = DbErr::from(Error::from(DbErr::RecordNotFound("no bakery".to_owned())));

    assert!(matches!(&back, DbErr::RecordNotFound(what) if what == "no bakery"), "{back:?}");
}

#[test]
fn mistakes_of_the_program_are_misuse() {
    for mistake in [DbErr::UpdateGetPrimaryKey, DbErr::AttrNotSet("name".to_owned())] {
        is_the_same(mistake, |error| error.class() == Class::Misuse && error.repeat() == Repeat::Never);
    }
}

#[db_testkit::test]
async fn a_wait_that_was_too_long_is_an_error_of_io_for_code_that_reads_sqlxs_errors(db: TestDb) {
    let short = Duration::from_millis(100);
    let pool = support::pool_with(&db, PoolOptions::api().max(1).statement_timeout(short));
    let sleep = Statement::from_string(DbBackend::Postgres, "select pg_sleep(60)");
    let late = pool.handle().orm().query_one_raw(sleep).await.expect_err("too long");
    let _held = pool.handle().acquire().await.expect("the only one");
    let full = cake::Entity::find().all(&pool.handle().acquire_timeout(short).orm()).await;

    let full = full.expect_err("no connection");
    assert!(matches!(&full, DbErr::Conn(RuntimeErr::SqlxError(error)) if is_timed_out(error)), "{full:?}");
    let late = DbErr::from(Error::from(late));
    assert!(matches!(&late, DbErr::Query(RuntimeErr::SqlxError(error)) if is_timed_out(error)), "{late:?}");
}

#[db_testkit::test]
async fn a_connection_out_of_step_is_an_error_of_io_for_code_that_reads_sqlxs_errors(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let mut copy = conn.copy_in("copy bakery (name) from stdin").await.expect("begun");
    // More than a socket buffers.
    let dropped = poll_then_drop(copy.send(vec![b'\n'; 100_000_000]), 1).await;
    assert!(dropped.is_none(), "the send was dropped while pending");

    let error = DbErr::from(copy.finish().await.expect_err("the COPY has ended"));

    let is_io = |error: &sqlx::Error| matches!(error, sqlx::Error::Io(_));
    assert!(matches!(&error, DbErr::Query(RuntimeErr::SqlxError(error)) if is_io(error)), "{error:?}");
    is_the_same(error, |error| matches!(error, Error::Lent(_)));
}

fn is_timed_out(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::TimedOut)
}

#[test]
fn what_quotes_a_value_is_not_shown() {
    let source = std::sync::Arc::new(std::io::Error::other("4711"));
    let conversion = DbErr::TryIntoErr { from: "text", into: "int4", source };
    for said in [DbErr::Type("4711".to_owned()), DbErr::Json("4711".to_owned()), conversion] {
        let error = Error::from(said);
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("4711"), "{text}");
        }
    }
}

#[db_testkit::test]
async fn a_record_that_is_not_there_is_not_found(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let orm = pool.handle().orm();

    let not_updated = bakery::ActiveModel { id: Set(1), name: Set("nobody".to_owned()) }.update(&orm).await;

    for error in [not_updated.expect_err("no row"), DbErr::RecordNotFound("no bakery".to_owned())] {
        assert_eq!(db_axum::Error::from(error.clone()).status(), StatusCode::NOT_FOUND);
        is_the_same(error, Error::is_not_found);
    }
}

#[db_testkit::test]
async fn an_entity_whose_table_is_gone_fails_by_that_name_and_leaves_what_is_around_it(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let orm = pool.handle().orm();
    named("kept").insert(&orm).await.expect("an insert");
    sqlx::raw_sql("drop table cake cascade").execute(pool.handle()).await.expect("dropped");

    let gone = cake::Entity::find().all(&orm).await.expect_err("its table is gone");
    assert_eq!(db_axum::Error::from(gone.clone()).status(), StatusCode::INTERNAL_SERVER_ERROR);
    is_the_same(gone, |error| {
        error.sqlstate().as_deref() == Some("42P01") && error.to_string().contains("\"cake\"")
    });

    pool.handle()
        .tx(async |tx| {
            let orm = tx.orm();
            let part = orm.begin().await?;
            named("undone").insert(&part).await?;
            let gone = Error::from(cake::Entity::find().one(&part).await.expect_err("its table is gone"));
            assert_eq!(gone.sqlstate().as_deref(), Some("42P01"));
            let aborted = Error::from(named("refused").insert(&part).await.expect_err("the part has failed"));
            assert_eq!(aborted.sqlstate().as_deref(), Some("25P02"));
            part.rollback().await?;
            named("kept, too").insert(&orm).await?;
            Ok::<_, Error>(())
        })
        .await
        .expect("committed");
    assert_eq!(support::count(pool.handle(), "bakery").await, 2);
}

#[db_testkit::test]
async fn a_column_of_another_type_or_none_fails_without_its_value(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let orm = pool.handle().orm();
    named("4711").insert(&orm).await.expect("an insert");

    sqlx::raw_sql("alter table bakery alter column name type int4 using name::int4")
        .execute(pool.handle())
        .await
        .expect("altered");
    let wrong = Error::from(bakery::Entity::find().one(&orm).await.expect_err("a number is no text"));
    assert!(!wrong.to_string().contains("4711") && !format!("{wrong:?}").contains("4711"), "{wrong:?}");
    sqlx::raw_sql("alter table bakery drop column name").execute(pool.handle()).await.expect("altered");
    let none = Error::from(bakery::Entity::find().one(&orm).await.expect_err("there is no name"));
    assert_eq!(none.sqlstate().as_deref(), Some("42703"));
}

#[db_testkit::test]
async fn values_that_no_server_takes_fail_alone(db: TestDb) {
    let pool = support::bakery(&db, 1).await;
    let orm = pool.handle().orm();

    let nul = named("a\0b").insert(&orm).await.expect_err("a NUL");
    assert_eq!(db_axum::Error::from(nul).status(), StatusCode::BAD_REQUEST);
    let many = bakery::Entity::find().filter(bakery::COLUMN.id.is_in(0..70_000)).all(&orm).await;
    assert_eq!(Error::from(many.expect_err("too many")).class(), Class::Misuse);
    let large = Statement::from_sql_and_values(DbBackend::Postgres, "select $1", [u64::MAX.into()]);
    assert_eq!(Error::from(orm.query_one_raw(large).await.expect_err("too large")).class(), Class::Misuse);
    let other = Statement::from_string(DbBackend::MySql, "select `name` from `bakery`");
    assert_eq!(
        Error::from(orm.query_one_raw(other).await.expect_err("MySQL")).sqlstate().as_deref(),
        Some("42601")
    );

    named("after all of them").insert(&orm).await.expect("an insert");
    assert_eq!(pool.stats().totals.dialled, 1, "{:?}", pool.stats());
}
