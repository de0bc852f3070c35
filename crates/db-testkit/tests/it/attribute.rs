//! `#[db_testkit::test]`, in each of its forms.

use std::time::Duration;

use db_testkit::{Stop, TestDb};
use sqlx::{ConnectOptions, Executor};

async fn tables(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from pg_class where relnamespace = 'public'::regnamespace")
        .fetch_one(&db.pool())
        .await
        .unwrap()
}

#[db_testkit::test]
async fn without_arguments_the_database_is_empty(db: TestDb) {
    assert_eq!(tables(&db).await, 0);
}

#[db_testkit::test(migrations = "tests/migrations")]
async fn with_migrations_the_tables_are_there_and_errors_can_be_returned(
    db: TestDb,
) -> Result<(), sqlx::Error> {
    let name: String = sqlx::query_scalar("select name from builds").fetch_one(&db.pool()).await?;

    assert_eq!(name, "first");
    Ok(())
}

#[db_testkit::test]
async fn two_workers_run_what_is_spawned(db: TestDb) {
    let runtime = tokio::runtime::Handle::current();

    assert_eq!(runtime.metrics().num_workers(), 2);
    let spawned = tokio::spawn(async move { db.name().len() });
    assert!(spawned.await.unwrap() > 0, "the database can be dropped in a task too");
}

#[db_testkit::test]
#[should_panic(expected = "as expected")]
async fn other_attributes_stay(_db: TestDb) {
    panic!("as expected");
}

#[db_testkit::test(worker_threads = 3)]
async fn the_number_of_workers_can_be_given(_db: TestDb) {
    assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), 3);
}

#[db_testkit::test(flavor = "multi_thread")]
async fn the_usual_flavor_can_be_named(_db: TestDb) {
    assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), 2);
}

#[db_testkit::test(flavor = "current_thread")]
async fn all_tasks_can_run_in_the_thread_of_the_test(_db: TestDb) {
    let thread = std::thread::current().id();

    assert_eq!(tokio::spawn(async { std::thread::current().id() }).await.unwrap(), thread);
}

#[db_testkit::test(flavor = "current_thread", start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the clock is what is tested")]
async fn a_paused_clock_jumps_over_a_wait(_db: TestDb) {
    let begun = std::time::Instant::now();

    tokio::time::sleep(Duration::from_mins(1)).await;

    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[db_testkit::test(flavor = "current_thread", start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the clock is what is tested")]
#[should_panic(expected = "select 'in paused time'")]
async fn what_is_left_in_paused_time_is_seen(db: TestDb) {
    let mut connection = db.options().connect().await.unwrap();
    connection.execute("begin").await.unwrap();
    connection.execute("select 'in paused time'").await.unwrap();
    std::mem::forget(connection);
}

#[db_testkit::test]
async fn a_test_can_have_several_databases(one: TestDb, mut other: TestDb, _third: TestDb) {
    other.pool().execute("create table only_here ()").await.unwrap();

    assert_eq!(tables(&one).await, 0);
    assert_eq!(tables(&other).await, 1);
    other = one;
    assert_eq!(tables(&other).await, 0);
}

#[db_testkit::test(server = "throwaway")]
async fn a_server_of_the_tests_own_can_be_stopped(one: TestDb, other: TestDb) {
    let data = |db: &TestDb| db.server().unwrap().data_dir().to_owned();
    assert_eq!(data(&one), data(&other), "the databases of a test are on one server");

    one.test_server().restart(Stop::Fast).await.unwrap();

    assert_eq!(tables(&other).await, 0);
}

#[db_testkit::test(leaves = ["select 'named'", "another"])]
async fn what_is_named_may_be_left(db: TestDb) {
    let mut connection = db.options().connect().await.unwrap();
    connection.execute("begin").await.unwrap();
    connection.execute("select 'named'").await.unwrap();
    std::mem::forget(connection);
}

#[db_testkit::test(strict)]
#[should_panic(expected = "\"stays\", idle")]
async fn a_strict_test_leaves_no_session(db: TestDb) {
    let connection = db.options().application_name("stays").connect().await.unwrap();
    std::mem::forget(connection);
}
