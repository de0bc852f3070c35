//! How a database stands, in numbers.

use db_core::{ConnectRetry, connect};
use db_migrate::{Migrations, Summary};
use db_testkit::TestDb;
use sqlx::postgres::PgConnection;

use crate::batches::as_role;
use crate::{SHOP, config, execute, folder};

async fn of(folder: &tempfile::TempDir, connection: &mut PgConnection) -> Summary {
    let migrations = Migrations::from_dir(folder.path()).await.expect("migrations");
    migrations.summary(connection).await.expect("a summary")
}

fn numbers(of: Summary) -> [i64; 7] {
    let Summary { current, supported, pending, changed, unknown, under_way, failed, .. } = of;
    let count = |count: usize| i64::try_from(count).expect("few");
    [current, supported, count(pending), count(changed), count(unknown), count(under_way), count(failed)]
}

#[db_testkit::test]
async fn pending_changed_unknown_and_failed_files_are_counted(db: TestDb) {
    let to = config(&db);
    let mut connection = connect::connect(&to, ConnectRetry::default()).await.expect("a connection");
    let files = folder(&SHOP);
    let up = async || Migrations::from_dir(files.path()).await.expect("migrations").up(&to).await;
    let write = |name: &str, sql: &str| std::fs::write(files.path().join(name), sql).expect("written");

    assert_eq!(numbers(of(&files, &mut connection).await), [0, 2, 2, 0, 0, 0, 0], "nothing is applied");
    up().await.expect("up");
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 2, 0, 0, 0, 0, 0], "all is applied");

    std::fs::create_dir_all(files.path().join("repeatable")).expect("a folder");
    write("repeatable/shops.sql", "create view shops as select no_such_column from shop");
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 2, 1, 0, 0, 0, 0], "a view is new");
    up().await.expect_err("it cannot be made");
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 2, 1, 0, 0, 0, 1], "it has failed");
    write("repeatable/shops.sql", "create view shops as select * from shop");
    up().await.expect("mended");
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 2, 0, 0, 0, 0, 0], "it is mended");

    write("3_more.up.sql", "create table more (id int); select 1 / 0");
    up().await.expect_err("it fails");
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 3, 1, 0, 0, 0, 1], "the newest has failed");
    execute(&db, "update _sqlx_migrations set checksum = '' where version = 2").await;
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 3, 1, 1, 0, 0, 1], "and one was changed");

    std::fs::remove_file(files.path().join("3_more.up.sql")).expect("removed");
    assert_eq!(
        numbers(of(&files, &mut connection).await),
        [2, 2, 0, 1, 0, 0, 0],
        "nobody mends what is no file"
    );
    let older = folder(&SHOP[..2]);
    std::fs::create_dir_all(older.path().join("repeatable")).expect("a folder");
    std::fs::write(older.path().join("repeatable/of_old.sql"), "select 1").expect("written");
    assert_eq!(numbers(of(&older, &mut connection).await), [2, 1, 0, 0, 1, 0, 0], "a newer database");
    execute(&db, "update _sqlx_migrations set success = false where version = 1").await;
    assert_eq!(numbers(of(&files, &mut connection).await), [2, 2, 0, 1, 0, 1, 0], "one was cut off");
}

#[tokio::test]
async fn a_role_that_may_not_read_the_history_gets_the_rest() {
    let (db, _server, service) = as_role("create table unused ()").await;
    let files = folder(&SHOP);
    let migrations = Migrations::from_dir(files.path()).await.expect("migrations");
    migrations.up(&config(&db)).await.expect("up");
    execute(&db, "grant select on _sqlx_migrations to app").await;
    let mut connection = connect::connect(&service, ConnectRetry::default()).await.expect("a connection");

    assert_eq!(numbers(of(&files, &mut connection).await), [2, 2, 0, 0, 0, 0, 0]);
}
