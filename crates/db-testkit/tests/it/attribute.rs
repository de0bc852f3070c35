//! `#[db_testkit::test]`, in each of its forms.

use db_testkit::TestDb;

#[db_testkit::test]
async fn without_arguments_the_database_is_empty(db: TestDb) {
    let tables: i64 =
        sqlx::query_scalar("select count(*) from pg_class where relnamespace = 'public'::regnamespace")
            .fetch_one(&db.pool())
            .await
            .unwrap();

    assert_eq!(tables, 0);
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
