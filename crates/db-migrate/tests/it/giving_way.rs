//! Migrations that wait for others: they give way, name them, and get through when those go.

use std::time::Duration;

use db_core::{Config, ConnectRetry};
use db_migrate::{Error, Migrations, Outcome};
use db_testkit::{TestDb, until};
use harness::Log;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use crate::{config, exists, migrations};

const FILES: [(&str, &str); 2] =
    [("1_other.sql", "create table other ()"), ("2_color.sql", "alter table t add color text")];

/// Short, so that a test sees several tries.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

const LONG: Duration = Duration::from_mins(1);

async fn pending() -> Migrations {
    migrations(&FILES).await.with_lock_timeout(LOCK_TIMEOUT).with_patience(LONG)
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("executed");
}

/// A session by the name `slow reader` that has read `t` in a transaction which is still open, and its process.
async fn reader(db: &TestDb) -> (PgConnection, i32) {
    execute(&db.pool(), "create table t (n int)").await;
    let mut reader = db.options().application_name("slow reader").connect().await.expect("a connection");
    let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut reader).await.expect("a number");
    sqlx::raw_sql("begin; select * from t").execute(&mut reader).await.expect("read");
    (reader, pid)
}

async fn count(db: &TestDb, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&db.pool()).await.expect("a count")
}

/// Sessions of this database that wait for a lock with this statement.
async fn waits(db: &TestDb, statement: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query like '{statement}%'"
    );
    count(db, &sql).await > 0
}

#[db_testkit::test]
async fn a_migration_gives_way_to_a_writer_names_the_reader_and_gets_through_when_it_goes(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    let (reader, pid) = reader(&db).await;
    let (migrations, to) = (pending().await, config(&db));
    let running = tokio::spawn(async move { migrations.up(&to).await });
    until("the migration waits", async || waits(&db, "alter table t").await).await;

    // Behind the migration, which is behind the reader, which stays: so it gets in only when the migration gives way.
    execute(&db.pool(), "insert into t values (1)").await;

    let blocker = format!("process {pid} (slow reader), in a transaction for");
    until("a try and the reader are told", async || {
        log.count(&["a migration gave way", "version=2", &blocker]) > 1
    })
    .await;
    assert!(log.count(&["a migration waits for a lock", &blocker]) > 0);
    assert_eq!(log.count(&[&blocker, "select * from t"]), 0, "a statement may hold secrets");
    reader.close().await.expect("closed");
    let report = running.await.expect("no panic").expect("up");
    assert_eq!(report.changed, [1, 2]);
    assert_eq!(count(&db, "select count(color) from t").await, 0);
}

#[db_testkit::test]
async fn a_migration_that_never_gets_its_lock_is_rolled_back_and_names_who_holds_it(db: TestDb) {
    let (reader, pid) = reader(&db).await;
    let migrations = pending().await.with_patience(LOCK_TIMEOUT * 10).with_blocking_statements(true);

    let error = migrations.up(&config(&db)).await.expect_err("the reader stays");

    let text = error.to_string();
    let Error::Blocked { version: 2, tries, blockers, .. } = error else { panic!("{error}") };
    assert!(tries >= 2, "{tries} tries");
    let blocker = blockers.first().expect("the reader");
    assert_eq!((blocker.pid, blocker.application.as_str()), (pid, "slow reader"));
    assert_eq!(blocker.statement.as_deref(), Some("begin; select * from t"));
    assert!(
        text.contains("lock timeout") && text.contains(&format!("it waited for process {pid}")),
        "{text}"
    );
    assert!(exists(&db, "other").await, "the migration before it stays");
    let left = "select count(*) from pg_locks join pg_class on relation = pg_class.oid where relname = 't' and mode = 'AccessExclusiveLock'";
    until("no lock is left", async || count(&db, left).await == 0).await;
    reader.close().await.expect("closed");
    assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [2]);
}

/// The session is put back between two tries: what the file has set before it waited is not there twice.
#[db_testkit::test]
async fn each_try_begins_with_the_session_as_the_first_one(db: TestDb) {
    let (reader, pid) = reader(&db).await;
    let sql = "do $$ begin
            if (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) <> 1 then
                raise exception 'found more than the migration lock';
            end if;
            if current_setting('search_path') <> '\"$user\", public' then raise exception 'found %', current_setting('search_path'); end if;
         end $$;
         set search_path = public, pg_catalog;
         select pg_advisory_lock(1);
         create temp table left_over ();
         alter table t add color text";
    let migrations = migrations(&[("1_color.sql", sql)]).await.with_lock_timeout(LOCK_TIMEOUT);
    let log = Log::of_this_process("db_migrate=info");
    let to = config(&db);
    let running = tokio::spawn(async move { migrations.up(&to).await });
    until("it was tried twice", async || {
        log.count(&["a migration gave way", "version=1", "tries=2", &format!("process {pid} ")]) > 0
    })
    .await;
    reader.close().await.expect("closed");

    assert_eq!(running.await.expect("no panic").expect("up").changed, [1]);
}

#[db_testkit::test]
async fn a_migration_gives_way_that_waits_to_be_recorded(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    migrations(&FILES[..1]).await.up(&config(&db)).await.expect("up");
    let (mut reader, pid) = reader(&db).await;
    sqlx::raw_sql("rollback; begin; lock table _sqlx_migrations in share mode")
        .execute(&mut reader)
        .await
        .expect("locked");
    let (migrations, to) = (pending().await, config(&db));
    let running = tokio::spawn(async move { migrations.up(&to).await });

    let blocker = format!("process {pid} (slow reader)");
    until("it gave way", async || log.count(&["a migration gave way", "version=2", &blocker]) > 0).await;
    execute(&db.pool(), "insert into t values (1)").await;
    reader.close().await.expect("closed");

    assert_eq!(running.await.expect("no panic").expect("up").changed, [2]);
}

#[db_testkit::test]
async fn a_migration_that_is_committed_is_not_repeated_when_its_record_cannot_be_read_yet(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    migrations(&FILES[..1]).await.up(&config(&db)).await.expect("up");
    execute(&db.pool(), "create table t (n int); create table gate ()").await;
    // It has its lock on the table of records before another session queues for it, which then has it from the commit on.
    let sql = "lock table _sqlx_migrations in row exclusive mode;
         do $$ begin while not exists (select from gate) loop perform pg_sleep(0.01); end loop; end $$;
         alter table t add color text";
    let files = [FILES[0], ("2_color.sql", sql), ("3_next.sql", "create table next ()")];
    let migrations = migrations(&files).await.with_lock_timeout(LOCK_TIMEOUT);
    let to = config(&db);
    let running = tokio::spawn(async move { (migrations.up(&to).await, migrations.history(&to).await) });
    let locked = "select count(*) from pg_locks where relation = '_sqlx_migrations'::regclass and mode = 'RowExclusiveLock'";
    until("the migration has its lock", async || count(&db, locked).await == 1).await;
    let mut other = db.options().connect().await.expect("a connection");
    let locking = tokio::spawn(async move {
        sqlx::raw_sql("begin; lock table _sqlx_migrations").execute(&mut other).await.expect("locked");
        other
    });
    until("another session queues", async || waits(&db, "begin; lock table _sqlx_migrations").await).await;

    execute(&db.pool(), "insert into gate default values").await;

    let other = locking.await.expect("it has the lock after the commit");
    let told = ["whether a migration is on record is not known yet", "version=2"];
    until("the look for the record gives way", async || log.count(&told) > 1).await;
    other.close().await.expect("closed");
    let (report, history) = running.await.expect("no panic");
    assert_eq!(report.expect("up").changed, [2, 3]);
    let history = history.expect("a history");
    assert_eq!(history.iter().map(|it| it.version).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(history.iter().all(|it| it.outcome == Outcome::Done), "{history:#?}");
}

#[db_testkit::test]
async fn a_migration_that_ends_in_a_deadlock_is_tried_again(db: TestDb) {
    execute(&db.pool(), "create table t (n int); create table u (n int)").await;
    let mut writer = db.options().connect().await.expect("a connection");
    // The migration is the one that looks for deadlocks first.
    sqlx::raw_sql("set deadlock_timeout = '1h'; begin; insert into u values (1)")
        .execute(&mut writer)
        .await
        .expect("written");
    let migrations = migrations(&[("1_both.sql", "alter table t add c int; alter table u add c int")]).await;
    let to = config(&db);
    let running = tokio::spawn(async move { migrations.with_lock_timeout(LONG).up(&to).await });
    until("the migration waits", async || waits(&db, "alter table t").await).await;

    sqlx::raw_sql("insert into t values (1); commit")
        .execute(&mut writer)
        .await
        .expect("the writer gets through");

    assert_eq!(running.await.expect("no panic").expect("up").changed, [1]);
    writer.close().await.expect("closed");
}

#[db_testkit::test]
async fn an_index_that_is_built_concurrently_waits_without_limit(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    let (mut reader, pid) = reader(&db).await;
    sqlx::raw_sql("insert into t values (1)").execute(&mut reader).await.expect("written");
    let sql = "-- no-transaction\ncreate index concurrently on t (n)";
    let migrations = migrations(&[("75_index.sql", sql)]).await.with_lock_timeout(Duration::from_millis(1));
    let to = config(&db);
    let running = tokio::spawn(async move { migrations.up(&to).await });
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like '%create index concurrently%'
          and clock_timestamp() - query_start > interval '100 ms'";
    until("the index waits for longer", async || count(&db, waiting).await == 1).await;
    until("its progress is told", async || {
        log.count(&[
            "an index is built",
            "version=75",
            "waiting for writers before build, 0 of 1 transactions have ended",
        ]) > 0
    })
    .await;
    assert!(log.count(&["a migration waits for a lock", &format!("process {pid} (slow reader)")]) > 0);

    sqlx::raw_sql("commit").execute(&mut reader).await.expect("committed");

    assert_eq!(running.await.expect("no panic").expect("up").changed, [75]);
    assert_eq!(count(&db, "select count(*) from pg_index where not indisvalid").await, 0);
    reader.close().await.expect("closed");
}

#[db_testkit::test]
async fn a_migration_whose_observer_cannot_connect_goes_on_and_says_so(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    let (reader, _) = reader(&db).await;
    let elsewhere = format!("127.0.0.1:1/{}", db.name());
    let to = Config::from_url(&format!("postgres://nobody@{elsewhere}")).expect("an address");
    let connection = db.options().connect().await.expect("a connection");
    let migrations = pending().await;
    let running =
        tokio::spawn(async move { migrations.up_on(connection, &to, ConnectRetry::default()).await });

    until("it is told", async || log.count(&["cannot see what a migration waits for", &elsewhere]) > 0).await;
    reader.close().await.expect("closed");

    assert_eq!(running.await.expect("no panic").expect("up").changed, [1, 2]);
}

#[db_testkit::test]
async fn those_who_wait_for_the_migration_lock_are_named_before_a_migration_outside_of_a_transaction(
    db: TestDb,
) {
    let log = Log::of_this_process("db_migrate=info");
    let (mut reader, _) = reader(&db).await;
    let files =
        [("1_color.sql", "alter table t add color text"), ("2_vacuum.sql", "-- no-transaction\nvacuum t")];
    let (migrations, to) = (migrations(&files).await, config(&db));
    let running = tokio::spawn(async move { migrations.up(&to).await });
    until("the migration waits", async || waits(&db, "alter table t").await).await;
    let mut waiter = db.options().connect().await.expect("a connection");
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut waiter).await.expect("a number");
    // As sqlx's migrator does.
    let key = 0x3d32_ad9e * i64::from(crc32fast::hash(db.name().as_bytes()));
    let waiting = tokio::spawn(async move {
        sqlx::query("select pg_advisory_lock($1)").bind(key).execute(&mut waiter).await.expect("locked");
        waiter.close().await.expect("closed");
    });
    until("it waits for the lock", async || waits(&db, "select pg_advisory_lock").await).await;

    sqlx::raw_sql("commit").execute(&mut reader).await.expect("committed");

    assert_eq!(running.await.expect("no panic").expect("up").changed, [1, 2]);
    waiting.await.expect("it gets the lock");
    assert_eq!(
        log.count(&["wait for the migration lock within a statement", "version=2", &pid.to_string()]),
        1
    );
    reader.close().await.expect("closed");
}
