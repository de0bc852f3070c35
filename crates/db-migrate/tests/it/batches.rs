//! Work in batches, beside others who read and write.

use std::future::pending;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use db_core::{Config, ConnectRetry};
use db_migrate::SCHEMA;
use db_migrate::batches::{BatchError, Batches, Change, Pace, Progress, Report, Row};
use db_testkit::{Cluster, TestDb, TestServer, until};
use harness::Log;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, PgPool};
use tokio::sync::Notify;

use crate::config;

/// Far longer than anything here takes.
const LONGEST: Duration = Duration::from_secs(30);

const WAITING: &str =
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";

pub(crate) async fn sql(pool: &PgPool, text: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned())).execute(pool).await.expect(text);
}

pub(crate) async fn count(pool: &PgPool, text: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(text.to_owned())).fetch_one(pool).await.expect(text)
}

/// People with the names `a1`, `a2` and so on.
async fn people(pool: &PgPool, rows: u32) {
    sql(
        pool,
        &format!(
            "create table people (id int primary key, name text);
             insert into people select n, 'a' || n from generate_series(1, {rows}) n; analyze people"
        ),
    )
    .await;
}

fn upper(row: &Row) -> Change {
    match row.text(0) {
        Some(name) if name != name.to_uppercase() => Change::To(vec![Some(name.to_uppercase().into_bytes())]),
        _ => Change::Unchanged,
    }
}

fn batches(change: impl Fn(&Row) -> Change + Send + Sync + 'static) -> Batches {
    Batches::new("upper", "people", change).writes("name").pace(Pace::flat_out())
}

/// A pace at which a run takes long enough to be met.
fn slow() -> Pace {
    Pace::flat_out().rows_per_second(Some(40))
}

async fn run(batches: &Batches, config: &Config) -> Result<Report, BatchError> {
    tokio::time::timeout(LONGEST, batches.run(config, pending())).await.expect("an end in time")
}

const UNCHANGED: &str = "select count(*) from people where name <> upper(name)";

#[db_testkit::test]
async fn every_row_is_changed_once_by_any_number_of_workers(db: TestDb) {
    let pool = db.pool();
    people(&pool, 20_000).await;
    sql(&pool, "update people set name = null where id = 7; update people set name = 'DONE' where id = 8")
        .await;

    for (workers, first) in [(1, 'A'), (3, 'B')] {
        let pace = Pace::flat_out().workers(workers);
        let change = move |row: &Row| match row.text(0) {
            Some(name) if name.starts_with(['a', 'A']) && !name.starts_with(first) => {
                Change::To(vec![Some(format!("{first}{}", &name[1..]).into_bytes())])
            }
            _ => Change::Unchanged,
        };
        let report = run(&batches(change).pace(pace), &config(&db)).await.expect("a run");

        assert!(report.is_finished);
        assert_eq!((report.written, report.read, report.missed, report.refused), (19_998, 20_000, 0, 0));
    }
    assert_eq!(count(&pool, "select count(*) from people where name = 'B' || id").await, 19_998);
    assert_eq!(count(&pool, "select count(*) from people where name is null and id = 7").await, 1);
}

/// Keys whose order or text is not that of a number: of several columns, of the index' order, of a collation, of partitions.
#[db_testkit::test]
async fn every_kind_of_key_is_walked(db: TestDb) {
    let pool = db.pool();
    sql(
        &pool,
        "create collation strange (provider = icu, locale = 'de-u-co-phonebk-kn-true');
         create collation same (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
         create schema shop;
         create table shop.\"Two\" (a text collate strange, b date, \"the name\" text collate same, primary key (b, a));
         insert into shop.\"Two\" select chr(97 + n % 26) || n, date '2026-01-01' + n / 100, 'ä' || n from generate_series(1, 3000) n;
         create table parts (id uuid, kind smallint, name json, primary key (kind, id)) partition by list (kind);
         create table parts_0 partition of parts for values in (0);
         create table parts_1 partition of parts for values in (1);
         insert into parts select gen_random_uuid(), n % 2, to_json('a' || n) from generate_series(1, 3000) n;",
    )
    .await;

    for workers in [1, 2] {
        let two = Batches::new("two", "shop.\"Two\"", upper).writes("the name").key(["a", "b"]);
        let two = run(&two.pace(Pace::flat_out().workers(workers)), &config(&db)).await.expect("a run");
        let parts = Batches::new("parts", "parts", |row| match row.text(0) {
            Some(name) if name.starts_with("\"a") => Change::To(vec![Some(name.replace('a', "b").into())]),
            _ => Change::Unchanged,
        });
        let parts = parts.writes("name").pace(Pace::flat_out().workers(workers));
        let parts = run(&parts, &config(&db)).await.expect("a run");

        let expected = if workers == 1 { 3000 } else { 0 };
        assert_eq!((two.read, two.written, parts.read, parts.written), (3000, expected, 3000, expected));
    }
    assert_eq!(count(&pool, "select count(*) from shop.\"Two\" where convert_to(\"the name\", 'utf8') = convert_to('Ä' || substr(\"the name\", 2), 'utf8')").await, 3000);
    assert_eq!(count(&pool, "select count(*) from parts where name::text like '\"b%'").await, 3000);
}

/// Runs statements in a thread of its own, and waits for them.
pub(crate) fn at_once(options: &PgConnectOptions, text: impl Into<String>) {
    let (options, text) = (options.clone(), text.into());
    let writes = async move {
        let mut writer = PgConnection::connect_with(&options).await.expect("a connection");
        sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut writer).await.expect("written");
        writer.close().await.expect("closed");
    };
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(writes);
    };
    std::thread::spawn(run).join().expect("written");
}

/// The race that Lockbox documents: a writer comes between reading and storing.
#[db_testkit::test]
async fn a_value_that_a_writer_stores_meanwhile_is_kept_and_changed_itself(db: TestDb) {
    let pool = db.pool();
    people(&pool, 100).await;
    let options = db.options();
    let batches = batches(move |row| {
        if row.text(0) == Some("a50") {
            let writes = "update people set name = 'written' where id = 50; delete from people where id = 51";
            at_once(&options, writes);
        }
        upper(row)
    });

    let report = run(&batches, &config(&db)).await.expect("a run");

    assert_eq!((report.written, report.missed), (99, 2));
    assert_eq!(count(&pool, "select count(*) from people where name = 'WRITTEN' and id = 50").await, 1);
    assert_eq!(count(&pool, UNCHANGED).await, 0);
}

#[db_testkit::test]
async fn a_row_whose_other_column_changes_each_time_it_is_read_is_changed(db: TestDb) {
    let pool = db.pool();
    people(&pool, 100).await;
    sql(&pool, "alter table people add seen int not null default 0").await;
    let options = db.options();
    let batches = batches(move |row| {
        if row.text(0) == Some("a50") {
            at_once(&options, "update people set seen = seen + 1 where id = 50");
        }
        upper(row)
    });

    let report = run(&batches, &config(&db)).await.expect("a run");

    assert_eq!((report.written, report.missed, report.locked.len()), (100, 1, 0));
    assert_eq!(count(&pool, "select count(*) from people where name = 'A50' and seen = 2").await, 1);
}

#[db_testkit::test]
async fn a_row_that_stays_locked_is_passed_over_tried_again_and_named(db: TestDb) {
    let pool = db.pool();
    people(&pool, 500).await;
    let mut lock = pool.begin().await.expect("a transaction");
    sqlx::query("select from people where id = 250 for update").execute(&mut *lock).await.expect("locked");

    let report =
        run(&batches(upper).patience(Duration::from_millis(100)), &config(&db)).await.expect("a run");

    assert!(report.is_finished);
    assert_eq!((report.written, report.locked), (499, vec![vec!["250".to_owned()]]));

    let (config, batches) = (config(&db), batches(upper).patience(LONGEST));
    let running = tokio::spawn(async move { run(&batches, &config).await });
    until("the row was passed over", async || count(&pool, WAITING).await == 1).await;
    lock.rollback().await.expect("unlocked");
    let report = running.await.expect("no panic").expect("a run");

    assert_eq!((report.written, report.locked.len()), (1, 0));
    assert_eq!(count(&pool, UNCHANGED).await, 0);
}

/// A writer that locks rows in the other order must not be the one whom the server ends.
#[db_testkit::test]
async fn in_a_deadlock_with_a_writer_the_batch_gives_way(db: TestDb) {
    let pool = db.pool();
    people(&pool, 1000).await;
    let mut writer = pool.begin().await.expect("a transaction");
    sqlx::query("update people set name = 'x' where id = 1000").execute(&mut *writer).await.expect("written");
    let (config, batches) = (config(&db), batches(upper).pace(Pace::flat_out()));

    let running = tokio::spawn(async move { run(&batches, &config).await });
    until("the batch waits for the writer", async || count(&pool, WAITING).await == 1).await;
    sqlx::query("update people set name = 'x' where id < 1000").execute(&mut *writer).await.expect("written");
    writer.commit().await.expect("committed");
    let report = running.await.expect("no panic").expect("a run");

    assert!(report.missed > 0);
    assert_eq!(count(&pool, "select count(*) from people where name = 'X' and id = 1000").await, 1);
}

#[db_testkit::test]
async fn a_run_that_was_dropped_or_stopped_resumes(db: TestDb) {
    let pool = db.pool();
    sql(&pool, SCHEMA[0].up).await;
    people(&pool, 400).await;
    let config = config(&db);
    let noted = "select coalesce(max(rows_written), 0) from batch_runs where name = 'upper'";

    let (dropped, of) = (batches(upper).pace(slow()), config.clone());
    let running = tokio::spawn(async move { dropped.run(&of, pending()).await });
    until("something is on record", async || count(&pool, noted).await > 0).await;
    running.abort();
    until("its sessions have ended", async || {
        count(&pool, "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())").await == 0
    })
    .await;
    let before = count(&pool, noted).await;

    let stop = Arc::new(Notify::new());
    let (stopped, of, stops) = (batches(upper).pace(slow()), config.clone(), Arc::clone(&stop));
    let running = tokio::spawn(async move { stopped.run(&of, stops.notified()).await });
    until("more is on record", async || count(&pool, noted).await > before).await;
    stop.notify_one();
    let report = tokio::time::timeout(Duration::from_secs(5), running).await.expect("an end in time");
    let report = report.expect("no panic").expect("a run");
    assert!(!report.is_finished);
    let before = count(&pool, noted).await;
    assert!(count(&pool, UNCHANGED).await > 0, "it was stopped before its end");

    let report = run(&batches(upper), &config).await.expect("a run");

    let rest = 400 - u64::try_from(before).expect("a count");
    assert!(report.is_finished);
    // The rest, and once more the whole.
    assert!(report.read >= 400 && report.read <= rest + 400, "{report:?} of {rest}");
    assert_eq!(count(&pool, UNCHANGED).await, 0);
    assert_eq!(count(&pool, "select count(*) from batch_runs where finished_at is not null").await, 1);

    let report = run(&batches(upper), &config).await.expect("a run");
    assert_eq!((report.read, report.written), (400, 0), "a finished run begins again");
}

#[db_testkit::test]
async fn two_runs_do_not_work_on_one_column(db: TestDb) {
    let pool = db.pool();
    people(&pool, 400).await;
    let (first, config) = (batches(upper).pace(slow()), config(&db));
    let of = config.clone();
    let running = tokio::spawn(async move { first.run(&of, pending()).await });
    until("the first one has begun", async || count(&pool, UNCHANGED).await < 400).await;

    let busy = run(&batches(upper), &config).await.expect_err("the first one has the lock");
    let other = Batches::new("other", "people", |_| Change::Unchanged).writes("id");
    run(&other, &config).await.expect("another column");

    assert!(matches!(busy, BatchError::Busy { holder: Some(_), .. }), "{busy}");
    assert!(
        busy.to_string().starts_with("another process works on people already (server process "),
        "{busy}"
    );
    running.abort();
}

#[db_testkit::test]
async fn what_does_not_fit_is_told_before_anything_is_changed(db: TestDb) {
    let pool = db.pool();
    people(&pool, 10).await;
    sql(
        &pool,
        "create table bare (name text); create table loose (id int unique, name text); create view seen as table people;
         create table made (id int primary key, name text generated always as ('x') stored)",
    )
    .await;

    for (relation, key, complaint) in [
        ("bare", &[][..], "bare: it has no primary key"),
        ("loose", &["id"], "loose: the key column \"id\" may be null"),
        ("people", &["name"], "people: the key column \"name\" may be null"),
        ("made", &[], "made: the column \"name\" is generated"),
        ("people", &["nr"], "people: there is no column \"nr\""),
        ("nobody", &[], "nobody: there is no such table"),
        ("seen", &["id"], "seen: it is not a table"),
    ] {
        let batches = Batches::new("x", relation, upper).writes("name").key(key.iter().copied());
        let error = run(&batches, &config(&db)).await.expect_err(relation);
        assert_eq!(error.to_string(), complaint);
    }
}

/// A server of the test's own with a role `app`, and its address.
pub(crate) async fn as_role(setup: &str) -> (TestDb, TestServer, Config) {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    sql(&db.pool(), "create role app login").await;
    people(&db.pool(), 2000).await;
    sql(&db.pool(), setup).await;
    let embedded = server.embedded().expect("a server of its own");
    let hba = embedded.data_dir().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).expect("pg_hba.conf");
    std::fs::write(&hba, format!("local all app trust\n{rules}")).expect("a rule");
    sql(&db.pool(), "select pg_reload_conf()").await;
    let host = embedded.socket_dir().display().to_string().replace('/', "%2F");
    let address = format!("postgres://app@{host}:{}/{}", embedded.port(), db.name());
    let config = Config::from_url(&address).expect("an address");
    until("the rule is in force", async || {
        db_core::connect::connect(&config, ConnectRetry::default()).await.is_ok()
    })
    .await;
    (db, server, config)
}

#[tokio::test]
async fn a_missing_permission_is_told_and_a_timeout_of_the_role_ends_nothing() {
    let setup = "grant select on people to app; alter role app set statement_timeout = '100ms';
         create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.4); return new; end $$;
         create trigger slow before update on people for each row when (old.id = 1) execute function slow()";
    let (db, _server, config) = as_role(setup).await;

    let error = run(&batches(upper), &config).await.expect_err("no right to update");
    assert!(error.to_string().starts_with("store rows of people: "), "{error}");
    assert!(error.to_string().contains("permission denied"), "{error}");
    let error = run(&batches(upper).without_triggers(true), &config).await.expect_err("no right");
    assert!(matches!(error, BatchError::Triggers { .. }), "{error:?}");

    sql(&db.pool(), "grant update on people to app").await;
    let report = run(&batches(upper), &config).await.expect("a run");
    assert_eq!(report.written, 2000);
}

#[tokio::test]
async fn rows_that_row_security_would_hide_are_an_error() {
    let setup = "alter table people owner to app; alter table people enable row level security, force row level security;
         create policy half on people using (id <= 5)";
    let (db, _server, config) = as_role(setup).await;

    let error = run(&batches(upper), &config).await.expect_err("row security");

    assert!(error.to_string().contains("row-level security"), "{error}");
    assert_eq!(count(&db.pool(), UNCHANGED).await, 2000);
}

#[db_testkit::test]
async fn triggers_fire_unless_they_are_switched_off(db: TestDb) {
    let pool = db.pool();
    people(&pool, 10).await;
    sql(
        &pool,
        "create table fired (id int);
         create function note() returns trigger language plpgsql as $$ begin insert into fired values (new.id); return new; end $$;
         create trigger note before update on people for each row execute function note()",
    )
    .await;

    run(&batches(upper).without_triggers(true), &config(&db)).await.expect("a run");
    assert_eq!((count(&pool, UNCHANGED).await, count(&pool, "select count(*) from fired").await), (0, 0));

    sql(&pool, "alter table people disable trigger note; update people set name = lower(name); alter table people enable trigger note")
        .await;
    run(&batches(upper), &config(&db)).await.expect("a run");
    assert_eq!((count(&pool, UNCHANGED).await, count(&pool, "select count(*) from fired").await), (0, 10));
}

#[db_testkit::test]
async fn a_table_that_is_changed_meanwhile_is_an_error(db: TestDb) {
    let pool = db.pool();
    for (change, complaint) in [
        ("alter table people rename column name to called", "column t.name does not exist"),
        ("drop table people", "relation \"people\" does not exist"),
    ] {
        sql(&pool, "drop table if exists people").await;
        people(&pool, 400).await;
        let (slowly, of) = (batches(upper).pace(slow()), config(&db));
        let running = tokio::spawn(async move { run(&slowly, &of).await });
        until("it has begun", async || count(&pool, UNCHANGED).await < 400).await;

        sql(&pool, change).await;
        let error = running.await.expect("no panic").expect_err("not the table it was");

        assert!(error.to_string().contains(complaint), "{error}");
    }
}

#[db_testkit::test]
async fn a_table_that_is_locked_as_a_whole_is_waited_for(db: TestDb) {
    let pool = db.pool();
    people(&pool, 10).await;
    let mut lock = pool.begin().await.expect("a transaction");
    sqlx::query("lock people").execute(&mut *lock).await.expect("locked");

    let error =
        run(&batches(upper).patience(Duration::from_millis(10)), &config(&db)).await.expect_err("locked");
    assert!(matches!(error, BatchError::Locked { .. }), "{error}");

    let (patient, of) = (batches(upper), config(&db));
    let running = tokio::spawn(async move { run(&patient, &of).await });
    until("it waits", async || count(&pool, WAITING).await == 1).await;
    lock.rollback().await.expect("unlocked");

    assert_eq!(running.await.expect("no panic").expect("a run").written, 10);
}

#[db_testkit::test]
async fn a_table_that_is_locked_as_a_whole_during_a_run_is_waited_for(db: TestDb) {
    let pool = db.pool();
    for (patience, is_enough) in [(LONGEST, true), (Duration::from_millis(10), false)] {
        sql(&pool, "drop table if exists people").await;
        people(&pool, 80).await;
        let (slowly, of) = (batches(upper).pace(slow()).patience(patience), config(&db));
        let running = tokio::spawn(async move { run(&slowly, &of).await });
        until("it has begun", async || count(&pool, UNCHANGED).await < 80).await;

        let mut lock = pool.begin().await.expect("a transaction");
        sqlx::query("lock people").execute(&mut *lock).await.expect("locked");
        until("it has met the lock", async || running.is_finished() || count(&pool, WAITING).await == 1)
            .await;
        if is_enough {
            lock.rollback().await.expect("unlocked");
        }

        match running.await.expect("no panic") {
            Ok(report) => assert!(is_enough && report.written == 80, "{report:?}"),
            Err(error) => assert!(!is_enough && matches!(error, BatchError::Locked { .. }), "{error}"),
        }
    }
}

#[db_testkit::test]
async fn lost_sessions_are_replaced(db: TestDb) {
    let pool = db.pool();
    people(&pool, 400).await;
    let (slowly, of) = (batches(upper).pace(slow().rows_per_second(Some(100)).workers(2)), config(&db));
    let running = tokio::spawn(async move { run(&slowly, &of).await });
    until("it has begun", async || count(&pool, UNCHANGED).await < 400).await;

    sql(&pool, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'").await;
    let report = running.await.expect("no panic").expect("a run");

    assert!(report.is_finished);
    assert_eq!(count(&pool, UNCHANGED).await, 0);
}

#[db_testkit::test]
async fn rows_that_cannot_be_changed_are_listed_or_end_the_run(db: TestDb) {
    let pool = db.pool();
    people(&pool, 100).await;
    let change = |row: &Row| match row.text(0) {
        Some("a7" | "a70") => Change::Cannot("it ends in 7".to_owned()),
        _ => upper(row),
    };

    let error = run(&batches(change).stop_at_refusals(true), &config(&db)).await.expect_err("a refusal");
    assert_eq!(error.to_string(), "people: the row (7) cannot be changed: it ends in 7");

    let report = run(&batches(change), &config(&db)).await.expect("a run");
    let keys: Vec<_> = report.refusals.iter().map(|refusal| refusal.key.join(" ")).collect();
    assert_eq!((report.written, report.refused, keys), (98, 2, vec!["7".to_owned(), "70".to_owned()]));
}

#[db_testkit::test]
async fn values_of_rows_that_need_no_change_are_not_read_and_long_ones_make_short_batches(db: TestDb) {
    let pool = db.pool();
    people(&pool, 60).await;
    sql(&pool, "update people set name = repeat('a', 1 << 20) where id > 20; update people set name = 'SECRET' where id = 1").await;
    note_batches(&pool, "").await;
    let (longest, lengths) = mpsc::channel();
    let shows = move |progress: &Progress| longest.send(*progress).expect("the test listens");
    let change = |row: &Row| {
        assert_ne!(row.text(0), Some("SECRET"));
        upper(row)
    };

    let batches = batches(change).pending("name <> upper(name)").on_progress(shows);
    let report = run(&batches, &config(&db)).await.expect("a run");

    assert_eq!((report.read, report.written), (60, 59));
    // Sixteen values of 1 MiB, and in the first batch the short ones before them.
    assert_eq!(count(&pool, "select max(size) from batches where size < 20").await, 16);
    assert_eq!(count(&pool, "select max(size) from batches").await, 35);
    let last = lengths.try_iter().last().expect("progress");
    assert_eq!((last.read, last.written, last.estimate, last.waiting), (60, 59, Some(60), 0));
}

/// Notes how many rows each batch stores, and does something with a batch of that `number`.
async fn note_batches(pool: &PgPool, also: &str) {
    let text = format!(
        "create table batches (size bigint);
         create function note() returns trigger language plpgsql as $$
           declare number bigint := (select count(*) from stored);
           begin insert into batches values (number); {also} return null; end $$;
         create trigger note after update on people referencing new table as stored
           for each statement execute function note()"
    );
    sql(pool, &text).await;
}

#[db_testkit::test]
async fn a_batch_that_takes_too_long_is_tried_again_with_fewer_rows(db: TestDb) {
    let pool = db.pool();
    people(&pool, 200).await;
    // As the session's own statement_timeout, which is 30 s, would end it.
    let cancels =
        "if number > 20 then perform pg_cancel_backend(pg_backend_pid()); perform pg_sleep(10); end if;";
    note_batches(&pool, cancels).await;

    let report = run(&batches(upper).pace(Pace::flat_out()), &config(&db)).await.expect("a run");

    assert_eq!((report.written, report.is_finished), (200, true));
    assert_eq!(count(&pool, UNCHANGED).await, 0);
    assert!(count(&pool, "select max(size) from batches").await > 10);
}

#[tokio::test]
async fn a_run_waits_while_a_standby_is_behind() {
    let cluster = Cluster::start().await.expect("a cluster");
    let log = Log::of_this_process("db_migrate=info");
    let (primary, standby) = (cluster.primary(), cluster.standby(0));
    let pool = PgPool::connect_with(primary.options()).await.expect("a pool");
    let replay = PgPool::connect_with(standby.options()).await.expect("a pool");
    people(&pool, 2000).await;
    sql(&replay, "select pg_wal_replay_pause()").await;
    let pace = Pace::flat_out().rows_per_second(Some(200)).max_replication_lag(Some(1));
    let (waits, of) = (batches(upper).pace(pace), Config::from_url(&primary.url()).expect("an address"));

    let running = tokio::spawn(async move { waits.run(&of, pending()).await });
    until("it is held", async || log.count(&["standbys", "is_held=true"]) == 1).await;
    until("its last batch has ended", async || {
        count(
            &pool,
            "select count(*) from pg_stat_activity where query like 'update people%' and state = 'active'",
        )
        .await
            == 0
    })
    .await;
    let held = count(&pool, UNCHANGED).await;
    assert!(held > 0);
    sql(&replay, "select pg_wal_replay_resume()").await;
    until("it goes on", async || log.count(&["standbys", "is_held=false"]) > 0).await;
    until("rows are stored again", async || count(&pool, UNCHANGED).await < held).await;
    running.abort();
    pool.close().await;
    replay.close().await;
}
