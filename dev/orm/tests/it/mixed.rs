//! Statements of sqlx and of `SeaORM` in one transaction, and what a statement of `SeaORM` has in common with any other.

use std::time::Duration;

use db_core::{Class, Error, Isolation, PoolOptions, Session, TxOptions, TxRetry};
use db_testkit::{TestDb, until};
use futures_util::TryStreamExt;
use orm::blog::{bob, user};
use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{DbBackend, QueryOrder, Statement, TransactionTrait};

use crate::support;

async fn add(db: &impl ConnectionTrait, name: &str) -> Result<(), DbErr> {
    let user =
        user::ActiveModel { name: Set(name.to_owned()), email: Set(name.to_owned()), ..Default::default() };
    user.insert(db).await?;
    Ok(())
}

async fn add_by_sqlx(session: &mut Session, name: &str) -> Result<(), Error> {
    let sql = r#"insert into "user" (name, email) values ($1, $1)"#;
    sqlx::query(sql).bind(name).execute(&mut *session).await?;
    Ok(())
}

fn statement(sql: &str) -> Statement {
    Statement::from_string(DbBackend::Postgres, sql)
}

#[db_testkit::test]
async fn both_see_one_transaction_in_any_order_streams_included(db: TestDb) {
    let pool = support::blog(&db, 1).await;

    let seen: Vec<String> = pool
        .handle()
        .tx(async |tx| {
            let orm = tx.orm();
            add(&orm, "a").await?;
            add_by_sqlx(tx, "b").await?;
            let orm = tx.orm();
            add(&orm, "c").await?;
            let mut seen = Vec::new();
            let mut users = user::Entity::find().order_by_asc(user::COLUMN.name).stream(&orm).await?;
            while let Some(user) = users.try_next().await? {
                seen.push(user.name);
            }
            drop(users);
            add_by_sqlx(tx, "d").await?;
            let mut names =
                sqlx::query_scalar::<_, String>(r#"select name from "user" order by name"#).fetch(&mut *tx);
            names.try_next().await?;
            drop(names);
            bob("bob@sea-ql.org").save(&tx.orm()).await?;
            tx.nested(async |part| {
                add(&part.orm(), "in a part").await?;
                add_by_sqlx(part, "of both").await
            })
            .await?;
            Ok::<_, Error>(seen)
        })
        .await
        .expect("committed");

    assert_eq!(seen, ["a", "b", "c"]);
    assert_eq!(support::count(pool.handle(), "user").await, 7);
}

#[db_testkit::test]
async fn both_are_undone_together(db: TestDb) {
    let pool = support::blog(&db, 1).await;

    let undone = pool
        .handle()
        .tx(async |tx| {
            bob("bob@sea-ql.org").save(&tx.orm()).await?;
            add_by_sqlx(tx, "b").await?;
            Err::<(), _>(Error::from(DbErr::Custom("enough".to_owned())))
        })
        .await
        .expect_err("enough");

    assert_eq!(undone.to_string(), "SeaORM: Custom Error: enough");
    for table in ["user", "profile", "post", "post_tag", "tag"] {
        assert_eq!(support::count(pool.handle(), table).await, 0, "{table}");
    }
}

#[db_testkit::test]
async fn a_transaction_that_sea_orm_begins_takes_statements_of_sqlx(db: TestDb) {
    let pool = support::blog(&db, 1).await;

    let tx = pool.handle().orm().begin().await.expect("begun");
    add(&tx, "a").await.expect("an insert");
    add_by_sqlx(&mut tx.session().await.expect("its session"), "b").await.expect("an insert");
    let part = tx.begin().await.expect("a savepoint");
    add_by_sqlx(&mut part.session().await.expect("its session"), "undone").await.expect("an insert");
    drop(part);
    add(&tx, "c").await.expect("an insert");
    tx.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "user").await, 3);
}

#[db_testkit::test]
async fn holders_and_errors_name_the_line_of_orm(db: TestDb) {
    let options = PoolOptions::api().max(1).statement_timeout(Duration::from_millis(200));
    let pool = support::pool_with(&db, options);
    let handle = pool.handle();

    let (orm, line) = (handle.orm(), line!());
    let tx = orm.begin().await.expect("begun");
    let holder = pool.holders().pop().expect("the transaction");
    assert!(holder.in_transaction);
    assert_eq!(
        holder.at.location().map(|at| (at.file().ends_with("mixed.rs"), at.line())),
        Some((true, line))
    );
    let late = tx.query_one_raw(statement("select pg_sleep(20)")).await.expect_err("too long");
    let late = Error::from(late);
    assert!(matches!(late, Error::Deadline(_)), "{late:?}");
    assert!(late.to_string().contains(&format!("mixed.rs:{line})")), "{late}");
    drop(tx);

    until("what was too late is cancelled", async || {
        db.sessions().await.is_ok_and(|all| {
            all.iter().all(|session| !session.query.contains("pg_sleep(20)") || session.state != "active")
        })
    })
    .await;
}

#[db_testkit::test]
async fn a_statement_whose_future_is_dropped_is_cancelled_on_the_server(db: TestDb) {
    let pool = support::pool(&db, 1);

    let slow = pool.handle().orm();
    let dropped = tokio::time::timeout(
        Duration::from_millis(100),
        slow.query_all_raw(statement("select pg_sleep(60)")),
    );
    dropped.await.expect_err("dropped");

    until("the connection is repaired", async || pool.stats().in_use == 0 && pool.stats().repairing == 0)
        .await;
    assert!(pool.handle().orm().query_one_raw(statement("select 1")).await.expect("an answer").is_some());
    assert_eq!(pool.stats().totals.dialled, 1, "{:?}", pool.stats());
}

/// The future of a statement is boxed. See the test of the same name in db-core.
#[db_testkit::test]
async fn the_future_of_one_statement_fits_into_the_allocators_cached_blocks(db: TestDb) {
    let pool = support::pool(&db, 1);
    let one = || statement("select 1");
    let small = |future: usize| assert!(future <= 1032, "{future} bytes");

    let orm = pool.handle().orm();
    small(size_of_val(&*orm.query_one_raw(one())));
    small(size_of_val(&*orm.query_all_raw(one())));
    small(size_of_val(&*orm.execute_raw(one())));
    let begun = orm.begin().await.expect("begun");
    small(size_of_val(&*begun.query_one_raw(one())));
    small(size_of_val(&*begun.query_all_raw(one())));
    small(size_of_val(&*begun.execute_raw(one())));
    begun.rollback().await.expect("rolled back");
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let orm = conn.orm();
    small(size_of_val(&*orm.query_one_raw(one())));
    small(size_of_val(&*orm.query_all_raw(one())));
    small(size_of_val(&*orm.execute_raw(one())));
}

#[db_testkit::test]
async fn a_stale_plan_is_healed(db: TestDb) {
    let pool = support::blog(&db, 1).await;
    let orm = pool.handle().orm();
    let all = || orm.query_all_raw(statement(r#"select * from "user""#));
    assert_eq!(all().await.expect("an answer").len(), 0);

    sqlx::raw_sql(r#"alter table "user" add column age int4"#).execute(pool.handle()).await.expect("altered");

    assert_eq!(all().await.expect("another plan").len(), 0);
}

#[db_testkit::test]
async fn raw_text_is_suspected_and_what_it_sets_is_gone_for_the_next(db: TestDb) {
    let pool = support::pool(&db, 1);
    let orm = pool.handle().orm();

    orm.execute_unprepared("set application_name = 'mine'; set search_path = nowhere").await.expect("set");

    until("it is repaired", async || pool.stats().in_use == 0 && pool.stats().repairing == 0).await;
    let path: String =
        sqlx::query_scalar("show search_path").fetch_one(pool.handle()).await.expect("an answer");
    assert_ne!(path, "nowhere");
}

#[db_testkit::test]
async fn a_conflict_that_sea_orm_met_runs_the_transaction_again(db: TestDb) {
    let pool = support::blog(&db, 2).await;
    add(&pool.handle().orm(), "a").await.expect("an insert");
    let options = TxOptions::default().isolation(Isolation::Serializable);
    let mut runs = 0;
    let (other, runs_seen) = (pool.handle(), &mut runs);

    pool.handle()
        .tx_retry(options, TxRetry::default(), || {
            *runs_seen += 1;
            let (run, other) = (*runs_seen, &other);
            async move |tx| {
                let orm = tx.orm();
                let mut user: user::ActiveModel =
                    user::Entity::find_by_id(1).one(&orm).await?.expect("one").into();
                if run == 1 {
                    sqlx::query(r#"update "user" set name = 'faster'"#)
                        .execute(other.clone())
                        .await
                        .expect("an update");
                }
                user.name = Set(format!("run {run}"));
                user.update(&orm).await?;
                Ok::<_, DbErr>(())
            }
        })
        .await
        .expect("committed");

    assert_eq!(runs, 2);
    let name: String =
        sqlx::query_scalar(r#"select name from "user""#).fetch_one(pool.handle()).await.expect("a name");
    assert_eq!(name, "run 2");
}

#[db_testkit::test]
async fn work_that_met_a_conflict_in_sea_orm_is_tried_again(db: TestDb) {
    let pool = support::pool(&db, 1);
    let mut runs = 0;
    let tried = TxRetry::default()
        .run(|| {
            runs += 1;
            let orm = pool.handle().orm();
            async move {
                let sql = "do $$ begin raise exception 'lost' using errcode = '40001'; end $$";
                orm.execute_raw(statement(sql)).await
            }
        })
        .await;

    let error = Error::from(tried.expect_err("it fails each time"));
    assert_eq!((error.class(), runs), (Class::Conflict, 4));
}
