//! Migrations run once, and each test gets a copy of the result.

use std::fs;

use db_testkit::{Error, TestServer};
use futures_util::future::join_all;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::support::{ask, connect, databases, eventually, maintenance, migration, open_dir};

async fn execute(options: &sqlx::postgres::PgConnectOptions, sql: String) {
    let mut connection = connect(options).await;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn many_tests_at_once_migrate_once() {
    let server = TestServer::throwaway().await.unwrap();
    let traces = open_dir();
    let trace = traces.path().join("runs");
    // A program's output is neither rolled back nor copied, unlike the content of a database.
    let sql = format!(
        "create table t (n int); copy (select 'run') to program 'cat >> {}'; select pg_sleep(0.1);",
        trace.display()
    );
    let folder = migration(&sql);

    let dbs = join_all((0..8).map(|_| server.create(folder.path()))).await;

    assert_eq!(fs::read_to_string(trace).unwrap(), "run\n");
    for db in dbs {
        assert_eq!(ask(&db.unwrap().options(), "select count(*)::text from t").await, "0");
    }
}

#[tokio::test]
async fn a_copy_has_the_file_that_spares_its_first_session_reading_the_catalog() {
    let server = TestServer::throwaway().await.unwrap();
    let folder = migration("create table t (n int);");

    let db = server.create(folder.path()).await.unwrap();

    let sql = format!(
        "select ((pg_stat_file('base/' || oid || '/pg_internal.init', true)).size > 0)::text
         from pg_database where datname = '{}'",
        db.name()
    );
    assert_eq!(ask(&maintenance(&db), &sql).await, "true");
}

#[tokio::test]
async fn repeatable_files_are_applied_after_the_others_and_decide_the_template_too() {
    let server = TestServer::throwaway().await.unwrap();
    let folder = migration("create table t (n int); set work_mem = '64kB';");
    let repeatable = folder.path().join("repeatable");
    fs::create_dir(&repeatable).unwrap();
    let write = |name: &str, sql: &str| fs::write(repeatable.join(name), sql).unwrap();
    write("2_b.sql", "create view b as select 'one' as says from a");
    write(
        "1_a.sql",
        "create view a as select count(*) from t; create table a_saw as select current_setting('work_mem') as work_mem",
    );

    let one = server.create(folder.path()).await.unwrap();
    write("2_b.sql", "create view b as select 'two' as says from a");
    let two = server.create(folder.path()).await.unwrap();
    write("3_c.sql", "create view c as select from nowhere");
    let error = server.create(folder.path()).await.unwrap_err();

    assert_eq!(ask(&one.options(), "select says from b").await, "one");
    assert_eq!(ask(&two.options(), "select says from b").await, "two");
    assert_ne!(ask(&two.options(), "select work_mem from a_saw").await, "64kB", "the session is put back");
    assert!(
        matches!(&error, Error::Repeatable { file, .. } if file.ends_with("repeatable/3_c.sql")),
        "{error:?}"
    );
}

#[tokio::test]
async fn changed_migrations_make_another_template() {
    let server = TestServer::throwaway().await.unwrap();
    let old = migration("create table old (n int);");
    let changed = migration("create table changed (n int);");

    let (one, other) =
        (server.create(old.path()).await.unwrap(), server.create(changed.path()).await.unwrap());
    let again = server.create(Migrator::new(old.path()).await.unwrap()).await.unwrap();

    assert_eq!(ask(&one.options(), "select count(*)::text from old").await, "0");
    assert_eq!(ask(&other.options(), "select count(*)::text from changed").await, "0");
    assert_eq!(ask(&again.options(), "select count(*)::text from old").await, "0");
    assert_eq!(databases(&maintenance(&one), "tk_template_").await.len(), 2);
}

#[tokio::test]
async fn a_migration_that_fails_is_named_and_leaves_no_template() {
    let server = TestServer::throwaway().await.unwrap();
    let watch = server.empty().await.unwrap();
    let wrong = migration("create table t (n int); select 1/0;");

    match server.create(wrong.path()).await {
        Err(Error::Migrate { source, .. }) => {
            assert!(source.to_string().contains("division by zero"), "{source}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(databases(&maintenance(&watch), "tk_template_").await, [""; 0]);
}

#[tokio::test]
async fn a_template_whose_maker_was_killed_is_made_anew() {
    let server = TestServer::throwaway().await.unwrap();
    let folder = migration("create table t (n int);");
    let first = server.create(folder.path()).await.unwrap();
    let template = databases(&maintenance(&first), "tk_template_").await.pop().unwrap();
    // The state between the migrations and the mark, with a table that must not be made twice.
    execute(
        &maintenance(&first),
        format!("alter database {template} with is_template false allow_connections true"),
    )
    .await;
    execute(&first.options().database(&template), "create table half_done ()".into()).await;

    let second = server.create(folder.path()).await.unwrap();

    let sql = "select coalesce(to_regclass('half_done')::text, 'no') || ' ' || to_regclass('t')::text";
    assert_eq!(ask(&second.options(), sql).await, "no t");
}

#[tokio::test]
async fn a_template_that_somebody_is_connected_to_is_waited_for() {
    let server = TestServer::throwaway().await.unwrap();
    let folder = migration("create table t (n int);");
    let first = server.create(folder.path()).await.unwrap();
    let watch = maintenance(&first);
    let template = databases(&watch, "tk_template_").await.pop().unwrap();
    execute(&watch, format!("alter database {template} with allow_connections true")).await;
    let user = connect(&first.options().database(&template)).await;
    execute(&watch, format!("alter database {template} with allow_connections false")).await;

    let waiting = tokio::spawn(async move { server.create(folder.path()).await });
    // PostgreSQL waits for five seconds and then refuses; the retry after that is ours.
    let refused = "select count(*)::text from pg_stat_activity
        where application_name = 'db-testkit' and query like '%pg_advisory_unlock%'";
    eventually("the copy is refused", async || ask(&watch, refused).await != "0").await;
    assert!(!waiting.is_finished());
    user.close().await.unwrap();

    let second = waiting.await.unwrap().unwrap();
    assert_eq!(ask(&second.options(), "select count(*)::text from t").await, "0");
}

#[tokio::test]
async fn a_template_unused_for_a_day_is_dropped_and_a_younger_one_stays() {
    let server = TestServer::throwaway().await.unwrap();
    let (old, young) = (migration("create table old (n int);"), migration("create table young (n int);"));
    let first = server.create(old.path()).await.unwrap();
    let stale = databases(&maintenance(&first), "tk_template_").await.pop().unwrap();
    let _second = server.create(young.path()).await.unwrap();
    execute(
        &maintenance(&first),
        format!("comment on database {stale} is 'db-testkit template, last used at 1000'"),
    )
    .await;

    let third = migration("create table third (n int);");
    let _third = server.create(third.path()).await.unwrap();

    let left = databases(&maintenance(&first), "tk_template_").await;
    assert!(!left.contains(&stale), "{left:?}");
    assert_eq!(left.len(), 2, "{left:?}");
}
