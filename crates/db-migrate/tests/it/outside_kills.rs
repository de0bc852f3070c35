//! Many processes migrate by files outside of a transaction, and whichever does it is killed again and again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use db_core::Config;
use db_migrate::Migrations;
use db_testkit::{TestDb, until};
use harness::Process;
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::{config, folder, locks};

const PROCESSES: usize = 32;
const KILLS: usize = 50;
const FILES: usize = 20;

/// The process: it migrates by the folder that it is told.
#[tokio::test]
async fn a_process_that_migrates() {
    let Some((address, mut orders)) = harness::told() else { return };
    let config = Config::from_url(&address).expect("an address");
    let folder = orders.recv().await.expect("an order");
    let migrations = Migrations::from_dir(Path::new(&folder)).await.expect("migrations");
    let done = migrations.with_lock_deadline(Duration::from_mins(2)).up(&config).await;
    harness::answer(&done.map_or_else(|error| error.to_string(), |_| "done".to_owned()));
    // The parent ends it.
    orders.recv().await;
}

/// A file whose statements wait for older transactions, leave indexes behind when they are cut off, or are meant for the next one.
fn file(nth: usize) -> String {
    let sql = "-- no-transaction
create table tN (n int, note text); insert into tN select n, n::text from generate_series(1, 3000) n; set application_name = 'file N';
insert into notes select current_setting('application_name');
create index concurrently if not exists tN_a on tN (n); create unique index concurrently tN_b on tN (n, note)
;create index concurrently on tN (note);
insert into notes values ('N one'); insert into notes values ('N; two')
/* three */; vacuum tN;
reindex table concurrently tN;
drop index concurrently tN_a;
create table wholeN (n int) partition by list (n); create table partN partition of wholeN for values in (1);
alter table wholeN detach partition partN concurrently;
reindex (concurrently) index tN_b;
insert into notes values ('N four')";
    sql.replace('N', &nth.to_string())
}

fn start(db: &TestDb, folder: &Path, nth: usize) -> Process {
    let url = db.url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let address = format!("{url}{separator}application_name=process{nth}");
    let mut process = Process::start("outside_kills::a_process_that_migrates", &address);
    process.tell(&folder.display().to_string());
    process
}

/// What is done: statements that note something, and indexes.
async fn progress(pool: &PgPool) -> i64 {
    let sql = "select (select count(*) from notes) + (select count(*) from pg_index where indisvalid)";
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count")
}

/// The process that migrates: it has the lock, and says its number in the address.
async fn migrating(pool: &PgPool) -> Option<usize> {
    let sql = "select application_name from pg_stat_activity
        where datname = current_database() and application_name like 'process%'
          and pid in (select pid from pg_locks where locktype = 'advisory' and granted)";
    let name: Option<String> = sqlx::query_scalar(sql).fetch_optional(pool).await.expect("an answer");
    name.and_then(|name| name.strip_prefix("process")?.parse().ok())
}

/// Ends the migrating session within a statement that builds or drops an index, if it is there now.
async fn end_within_a_build(pool: &PgPool) -> bool {
    let sql = "select coalesce(bool_or(pg_terminate_backend(pid)), false) from pg_stat_activity
        where datname = current_database() and state = 'active' and query ~ '^(create|drop|reindex).*concurrently'";
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("an answer")
}

/// Writes in transactions that an index waits for, until it is told to stop.
fn writer(pool: &PgPool, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (pool, stop) = (pool.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        while !stop.load(Relaxed) {
            let written =
                sqlx::raw_sql("begin; insert into other default values; select pg_sleep(0.02); commit");
            written.execute(&pool).await.expect("written");
        }
    })
}

#[db_testkit::test]
async fn after_fifty_kills_of_whichever_process_migrates_each_statement_has_run_once(db: TestDb) {
    let pool = db.pool();
    sqlx::raw_sql("create table notes (note text); create table other ()")
        .execute(&pool)
        .await
        .expect("made");
    let stop = Arc::<AtomicBool>::default();
    let writer = writer(&pool, &stop);
    let names: Vec<(String, String)> =
        (1..=FILES).map(|nth| (format!("{nth}_file.up.sql"), file(nth))).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|(name, sql)| (name.as_str(), sql.as_str())).collect();
    let folder = folder(&files);
    let mut processes: Vec<Process> = (0..PROCESSES).map(|nth| start(&db, folder.path(), nth)).collect();

    // A file adds seven: four notes, and three indexes of which two stay.
    let all = i64::try_from(FILES).expect("few") * 6;
    let before = progress(&pool).await;
    let mut invalid = 0;
    for kill in 0..KILLS {
        let target = before + all * i64::try_from(kill).expect("few") / 60 + i64::from(fastrand::u32(0..2));
        until("the migrations go on", async || progress(&pool).await >= target).await;
        if kill % 2 == 0 {
            until("an index is built", async || end_within_a_build(&pool).await).await;
            let left = sqlx::query_scalar("select count(*) from pg_index where not indisvalid");
            invalid += left.fetch_one(&pool).await.map(i64::unsigned_abs).expect("a count");
            continue;
        }
        let mut killed = None;
        until("a process migrates", async || {
            killed = migrating(&pool).await;
            killed.is_some()
        })
        .await;
        let killed = killed.expect("a process");
        let new = start(&db, folder.path(), killed);
        std::mem::replace(&mut processes[killed], new).kill();
    }
    for process in &mut processes {
        assert_eq!(process.hear().await, "done");
    }

    stop.store(true, Relaxed);
    writer.await.expect("no panic");

    let notes: Vec<(String, i64)> = sqlx::query_as("select note, count(*) from notes group by 1 order by 1")
        .fetch_all(&pool)
        .await
        .expect("notes");
    assert!(notes.iter().all(|(_, times)| *times == 1), "{notes:?}");
    assert_eq!(notes.len(), FILES * 4);
    let indexes: Vec<String> = sqlx::query_scalar(
        "select indexrelid::regclass::text || case when indisvalid then '' else ' invalid' end
         from pg_index join pg_class on oid = indrelid where relname ~ '^t[0-9]+$'",
    )
    .fetch_all(&pool)
    .await
    .expect("indexes");
    assert_eq!(indexes.len(), FILES * 2, "{indexes:?}");
    assert!(indexes.iter().all(|name| name.ends_with("_b") || name.ends_with("_note_idx")), "{indexes:?}");
    let parts: i64 =
        sqlx::query_scalar("select count(*) from pg_inherits").fetch_one(&pool).await.expect("a count");
    assert_eq!(parts, 0, "each partition is detached");
    let migrations = Migrations::from_dir(folder.path()).await.expect("migrations");
    assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [0; 0]);
    drop(processes);
    until("no lock is left", async || locks(&db).await == 0).await;
    assert!(invalid > 5, "only {invalid} invalid indexes were seen after a kill");
}
