//! `db-migrate` on a real PostgreSQL.

mod batches;
mod check;
mod cli;
mod data_steps;
mod giving_way;
mod history;
mod kills;
mod outside;
mod outside_kills;
mod reindex;
mod rekey;
mod repeatables;
mod runner;
mod summaries;

use std::path::Path;
use std::time::Duration;

use db_core::{Config, ConnectRetry};
use db_migrate::{Error, Migrations, Migrator, State};
use db_testkit::TestDb;
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

/// A folder of migrations, by file name.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, sql) in files {
        std::fs::write(folder.path().join(name), sql).expect("written");
    }
    folder
}

async fn migrations(files: &[(&str, &str)]) -> Migrations {
    Migrations::from_dir(folder(files).path()).await.expect("migrations")
}

const SHOP: [(&str, &str); 4] = [
    ("1_shop.up.sql", "create table shop (id int)"),
    ("1_shop.down.sql", "drop table shop"),
    ("2_price.up.sql", "alter table shop add price int"),
    ("2_price.down.sql", "alter table shop drop price"),
];

async fn states(migrations: &Migrations, db: &TestDb) -> Vec<(i64, State)> {
    let status = migrations.status(&config(db)).await.expect("a status");
    status.into_iter().map(|status| (status.version, status.state)).collect()
}

async fn exists(db: &TestDb, table: &str) -> bool {
    sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(table)
        .fetch_one(&db.pool())
        .await
        .expect("an answer")
}

async fn execute(db: &TestDb, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&db.pool()).await.expect("executed");
}

/// Advisory locks on the test's database.
async fn locks(db: &TestDb) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_locks
         where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())",
    )
    .fetch_one(&db.pool())
    .await
    .expect("a count")
}

#[db_testkit::test]
async fn up_and_down_and_up_again(db: TestDb) {
    let migrations = migrations(&SHOP).await;
    assert_eq!(states(&migrations, &db).await, [(1, State::Pending), (2, State::Pending)]);
    assert!(!exists(&db, "_sqlx_migrations").await, "a status changes nothing");

    let up = migrations.up(&config(&db)).await.expect("up");
    assert_eq!((up.changed, up.version), (vec![1, 2], 2));
    assert_eq!(states(&migrations, &db).await, [(1, State::Applied), (2, State::Applied)]);
    let again = migrations.up(&config(&db)).await.expect("up");
    assert_eq!((again.changed, again.version), (vec![], 2));

    let down = migrations.down_to(&config(&db), 1).await.expect("down");
    assert_eq!((down.changed, down.version), (vec![2], 1));
    let all_down = migrations.down_to(&config(&db), 0).await.expect("down");
    assert_eq!((all_down.changed, all_down.version), (vec![1], 0));
    assert!(!exists(&db, "shop").await);

    let up = migrations.up(&config(&db)).await.expect("up");
    assert_eq!(up.changed, [1, 2]);
    assert!(exists(&db, "shop").await);
    // A server process ends a moment after its connection does.
    db_testkit::until("no lock is left", async || locks(&db).await == 0).await;
}

#[db_testkit::test]
async fn sqlx_and_we_see_one_history_in_either_order(db: TestDb) {
    let files = folder(&SHOP);
    let ours = Migrations::from_dir(files.path()).await.expect("migrations");
    let theirs = Migrator::new(files.path()).await.expect("a migrator");

    theirs.run_to(1, &db.pool()).await.expect("sqlx applies the first");
    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, [2]);
    theirs.run(&db.pool()).await.expect("sqlx finds nothing to do");
    theirs.undo(&db.pool(), 1).await.expect("sqlx reverts the second");
    assert_eq!(states(&ours, &db).await, [(1, State::Applied), (2, State::Pending)]);
    assert_eq!(ours.down_to(&config(&db), 0).await.expect("down").changed, [1]);
}

#[db_testkit::test]
async fn the_lock_is_sqlxs_own_and_a_taken_one_is_given_up_on_with_its_holder(db: TestDb) {
    let migrations = migrations(&SHOP).await.with_lock_deadline(Duration::from_millis(300));
    let mut other = db.pool().acquire().await.expect("a connection");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *other).await.expect("a pid");
    sqlx::migrate::Migrate::lock(&mut *other).await.expect("sqlx's lock");

    let error = migrations.up(&config(&db)).await.expect_err("somebody migrates");

    assert!(matches!(&error, Error::Locked { holder: Some(holder), .. } if *holder == pid), "{error:?}");
    assert!(error.to_string().ends_with(&format!("the session of server process {pid} holds it")), "{error}");
    sqlx::migrate::Migrate::unlock(&mut *other).await.expect("unlocked");
    migrations.up(&config(&db)).await.expect("nobody migrates");
}

#[db_testkit::test]
async fn many_replicas_build_an_index_concurrently_and_none_is_killed(db: TestDb) {
    let files = folder(&[
        ("1_shop.up.sql", "create table shop as select n as id from generate_series(1, 50000) n"),
        ("1_shop.down.sql", "drop table shop"),
        ("2_index.up.sql", "-- no-transaction\ncreate index concurrently shop_id on shop (id)"),
        ("2_index.down.sql", "drop index shop_id"),
    ]);
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let migrations = Migrations::from_dir(files.path()).await.expect("migrations");
        let config = config(&db);
        replicas.spawn(async move { migrations.up(&config).await });
    }

    let mut changed = Vec::new();
    while let Some(replica) = replicas.join_next().await {
        changed.extend(replica.expect("no panic").expect("up").changed);
    }

    changed.sort_unstable();
    assert_eq!(changed, [1, 2], "each once");
    let valid: bool =
        sqlx::query_scalar("select indisvalid from pg_index where indexrelid = 'shop_id'::regclass")
            .fetch_one(&db.pool())
            .await
            .expect("an index");
    assert!(valid);
}

#[db_testkit::test]
async fn a_failure_names_the_version_and_leaves_no_lock_and_nothing_half_done(db: TestDb) {
    let bad = migrations(&[
        ("1_shop.up.sql", "create table shop (id int)"),
        ("2_bad.up.sql", "create table half (id int); insert into nowhere values (1)"),
    ])
    .await;

    let error = bad.up(&config(&db)).await.expect_err("a bad migration");

    assert!(matches!(error, Error::Failed { version: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("relation \"nowhere\" does not exist (42P01)"), "{error}");
    assert!(exists(&db, "shop").await && !exists(&db, "half").await);
    // A server process ends a moment after its connection does.
    db_testkit::until("no lock is left", async || locks(&db).await == 0).await;
}

#[db_testkit::test]
async fn silent_actions_of_sqlx_are_refused(db: TestDb) {
    let shop = migrations(&SHOP).await;
    shop.up(&config(&db)).await.expect("up");
    let up =
        async |files: &[(&str, &str)]| migrations(files).await.up(&config(&db)).await.expect_err("refused");
    let mut files = SHOP.to_vec();

    files[0].1 = "create table shop (id bigint)";
    assert!(matches!(up(&files).await, Error::Changed { version: 1, difference: Some(_) }));

    assert!(matches!(up(&SHOP[..2]).await, Error::Unknown { version: 2 }));

    let late = [("3_late.up.sql", "select 1"), ("4_later.up.sql", "select 1")];
    migrations(&[&SHOP[..], &late[1..]].concat()).await.up(&config(&db)).await.expect("up");
    let error = up(&[&SHOP[..], &late[..]].concat()).await;
    assert!(matches!(error, Error::OutOfOrder { version: 3, newest: 4 }), "{error}");

    let no_way_back = migrations(&[&SHOP[..], &late[1..]].concat()).await.down_to(&config(&db), 1).await;
    assert!(matches!(no_way_back, Err(Error::NoDown { version: 4, target: 1 })), "{no_way_back:?}");
    let nowhere = shop.down_to(&config(&db), 17).await;
    assert!(matches!(nowhere, Err(Error::NoSuchVersion { version: 17 })), "{nowhere:?}");
    assert!(exists(&db, "shop").await, "nothing was reverted");
    // A server process ends a moment after its connection does.
    db_testkit::until("no lock is left", async || locks(&db).await == 0).await;
}

#[tokio::test]
async fn a_folder_that_is_none_is_named() {
    let error = Migrations::from_dir(Path::new("no/such/folder")).await.expect_err("no folder");

    assert!(error.to_string().starts_with("the migrations in no/such/folder cannot be read"), "{error}");
}

/// Each migration adds a row, so that one which ran twice would add two.
const ROWS: [(&str, &str); 3] = [
    ("1_ran.up.sql", "create table ran (version int); insert into ran values (1)"),
    ("2_bare.up.sql", "-- no-transaction\ninsert into ran values (2)"),
    ("3_more.up.sql", "insert into ran values (3)"),
];

async fn ran(db: &TestDb) -> Vec<i32> {
    sqlx::query_scalar("select version from ran order by 1").fetch_all(&db.pool()).await.expect("rows")
}

#[db_testkit::test]
async fn a_connection_that_is_lost_on_the_way_is_replaced_and_nothing_runs_twice(_db: TestDb) {
    for text in
        ["create table ran", "begin", "insert into public._sqlx_migrations", "select version, description"]
    {
        for after in [false, true] {
            let db = TestDb::empty().await.expect("a database");
            let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
            let through = Config::from_url(&proxy.url()).expect("an address");
            if after {
                proxy.cut_answer_to(text);
            } else {
                proxy.cut_before(text);
            }

            let report = migrations(&ROWS).await.up(&through).await.expect(text);

            assert_eq!((report.changed, report.version), (vec![1, 2, 3], 3), "{text}, {after}");
            assert_eq!(ran(&db).await, [1, 2, 3], "{text}, {after}");
            db_testkit::until("no lock is left", async || locks(&db).await == 0).await;
        }
    }
}

/// A table lock stands for a link that fell silent, but one that the test can end.
#[db_testkit::test]
async fn an_answer_that_does_not_come_is_not_waited_for_for_ever(db: TestDb) {
    let migrations = migrations(&[("1_one.up.sql", "create table one ()")]).await;
    migrations.up(&config(&db)).await.expect("up");
    let pool = db.pool();
    let mut silent = pool.begin().await.expect("begun");
    sqlx::query("lock table _sqlx_migrations in access exclusive mode")
        .execute(&mut *silent)
        .await
        .expect("locked");

    let once = ConnectRetry::default().deadline(Duration::ZERO);
    let config = config(&db);
    let given_up = tokio::time::timeout(Duration::from_secs(20), migrations.up_within(&config, once));
    let error = given_up.await.expect("in time").expect_err("nobody answers");

    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().starts_with("read the migration table: "), "{error}");
    let (again, released) = tokio::join!(migrations.up(&config), async {
        // The abandoned query, the retry, and the one after that.
        let waits = |it: &&db_testkit::Session| it.wait.as_deref() == Some("Lock: relation");
        db.until_sessions("it asks on another", |all| all.iter().filter(waits).count() >= 3).await;
        silent.rollback().await
    });
    released.expect("rolled back");
    assert_eq!(again.expect("by another connection").version, 1);
}

#[db_testkit::test]
async fn a_migration_whose_client_has_gone_does_not_keep_the_lock_until_it_ends(db: TestDb) {
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int4")
        .fetch_one(&db.pool())
        .await
        .expect("a version");
    if version < 140_000 {
        // The server does not support `client_connection_check_interval`.
        return;
    }
    // The second, since the session is put back after the first.
    let files = [("1_one.up.sql", "select 1"), ("2_sleeps.up.sql", "select pg_sleep(600)")];
    let sleeps = migrations(&files).await;
    let config = config(&db);
    tokio::select! {
        done = sleeps.up(&config) => panic!("{done:?}"),
        _ = db.until_sessions("it sleeps", |all| all.iter().any(|it| it.query.contains("pg_sleep"))) => {}
    }

    db.until_sessions("its session has ended", <[_]>::is_empty).await;
}
