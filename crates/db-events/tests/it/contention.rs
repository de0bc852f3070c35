//! Many writers of one log: the cost of a lost race for the server.

use std::fs;
use std::time::{Duration, Instant};

use db_core::{Config, Pool, PoolOptions, Tx};
use db_events::{Error, EventLogs, LogId};
use db_notify::{Bus, BusOptions};
use db_testkit::{TestDb, TestServer, until};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, append_and_stay_open, assert_dense, events, numbered, read_to_end, until_one_waits,
};

const WRITERS: i64 = 16;

/// The duration of the first test's load. A longer load loses more races; no assertion is about it.
const LOAD: Duration = Duration::from_secs(5);

/// All writers append at once for [`LOAD`]. Returns the number of appends.
async fn write_for_a_while(events: &EventLogs, log: LogId) -> i64 {
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let events = events.clone();
        writers.spawn(async move {
            let mut appends = 0;
            while begun.elapsed() < LOAD {
                events.append(log, &numbered(writer, 1)).await.expect("appended");
                appends += 1;
            }
            appends
        });
    }
    writers.join_all().await.into_iter().sum()
}

/// Each writer appends `each` batches, all writers at once.
async fn write_together(events: &EventLogs, log: LogId, each: i64) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let events = events.clone();
        writers.spawn(async move {
            for batch in 0..each {
                events.append(log, &numbered(writer * 1000 + batch, 1)).await.expect("appended");
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_lose_the_race_leave_no_error_in_the_servers_log_and_few_dead_rows() {
    // The longer a commit takes, the more other writers lose their race meanwhile.
    let durable = [("fsync", "on"), ("synchronous_commit", "on"), ("autovacuum", "off")];
    let builder = durable
        .iter()
        .fold(db_embedded::Server::throwaway(), |builder, (name, value)| builder.setting(*name, *value));
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.create("../../migrations").await.expect("a database");
    let config = Config::from_url(&db.direct_url()).expect("an address");
    let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
    let pool = Pool::new(&config, PoolOptions::backend());
    let events = EventLogs::new(pool.clone(), &bus);
    let log = events.create().await.expect("a log");

    let appends = write_for_a_while(&events, log).await;
    assert_eq!(events.head(log).await.expect("a head").last, appends);
    // A session reports its counters at its end at the latest.
    pool.close(PATIENCE).await;
    let counts = async || -> (i64, i64) {
        let counts =
            "select n_live_tup, n_dead_tup from pg_stat_user_tables where relname = 'event_log_batches'";
        sqlx::query_as(counts).fetch_one(&db.pool()).await.expect("counts")
    };
    until("the sessions have reported their counts", async || counts().await.0 >= appends).await;

    let (live, dead) = counts().await;
    let table: i64 = sqlx::query_scalar("select pg_total_relation_size('event_log_batches')")
        .fetch_one(&db.pool())
        .await
        .expect("a size");
    println!("{appends} appends, {dead} dead rows, {} bytes an append with the indexes", table / live);
    assert!(dead * 20 <= appends, "{dead} dead rows for {appends} appends");
    let said = db.server().expect("our own").data_dir().with_file_name("log");
    let said = fs::read_to_string(said).expect("the server's log");
    let errors: Vec<_> = said.lines().filter(|line| line.contains("ERROR:")).collect();
    assert!(errors.is_empty(), "{} of them, such as {:?}", errors.len(), errors.first());
}

#[db_testkit::test(migrations = "../../migrations")]
async fn writers_race_where_each_transaction_keeps_its_snapshot(db: TestDb) {
    for isolation in ["repeatable read", "serializable"] {
        let set = format!("alter database {} set default_transaction_isolation = '{isolation}'", db.name());
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&db.pool()).await.expect("set");
        let events = events(&db).await;
        let log = events.create().await.expect("a log");

        write_together(&events, log, 20).await;
        events.finish(log, &numbered(-1, 1)).await.expect("finished");

        let all = read_to_end(events.stream(log, 0)).await;
        assert_eq!(i64::try_from(all.len()).expect("a number"), WRITERS * 20 + 1, "{isolation}");
        assert_dense(&all, 1);
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_that_waited_for_one_that_is_rolled_back_takes_its_place(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 2)).await.expect("appended");
    let open = append_and_stay_open(&db, log, (3, 9)).await;
    let quick = tokio::spawn({
        let events = events.clone();
        async move { events.append(log, &numbered(3, 1)).await }
    });
    until_one_waits(&db).await;

    open.rollback().await.expect("rolled back");

    assert_eq!(quick.await.expect("no panic").expect("appended"), 3..=3);
    events.finish(log, &numbered(4, 1)).await.expect("finished");
    let all = read_to_end(events.stream(log, 0)).await;
    assert_eq!(all.len(), 4);
    assert_dense(&all, 1);
}

async fn note_result(tx: &mut Tx, log: LogId) -> Result<(), db_core::Error> {
    sqlx::query("insert into results values ($1)").bind(log.0).execute(tx).await?;
    Ok(())
}

#[db_testkit::test(migrations = "../../migrations")]
async fn the_only_writer_of_a_log_gets_a_conflict_if_another_writer_is_quicker(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    sqlx::query("create table results (log bigint)").execute(&db.pool()).await.expect("made");
    let mut open = db.pool().begin().await.expect("begun");
    sqlx::query("insert into event_log_batches values ($1, 1, 1, 1, '{n}', '{other}', false)")
        .bind(log.0)
        .execute(&mut *open)
        .await
        .expect("appended");
    let writer = events.writer(log, 0);
    let finishing = tokio::spawn(async move {
        writer.finish_with(&numbered(1, 1), |tx| Box::pin(note_result(tx, log))).await
    });
    until_one_waits(&db).await;

    open.commit().await.expect("committed");

    let refused = timeout(PATIENCE, finishing).await.expect("in time").expect("no panic");
    assert!(matches!(refused, Err(Error::Conflict { expected: 0, last: 1, .. })), "{refused:?}");
    let results: i64 =
        sqlx::query_scalar("select count(*) from results").fetch_one(&db.pool()).await.expect("a count");
    assert_eq!(results, 0, "nothing of the transaction is stored");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_violated_unique_constraint_of_another_table_is_an_error_and_no_race(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let trigger = "create table latest (is_only boolean primary key default true, log bigint);
        create function note_latest() returns trigger language plpgsql as $$
        begin insert into latest (log) values (new.log); return new; end $$;
        create trigger note_latest before insert on event_log_batches for each row execute function note_latest()";
    sqlx::raw_sql(trigger).execute(&db.pool()).await.expect("made");
    events.append(log, &numbered(1, 1)).await.expect("the first one fits");

    let second = timeout(PATIENCE, events.append(log, &numbered(2, 1))).await.expect("not tried for ever");

    assert!(
        matches!(&second, Err(Error::Database { cause, .. }) if cause.is_unique_violation()),
        "{second:?}"
    );
}
