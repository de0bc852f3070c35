//! The cost of a page, for any log and any state of the planner's statistics.

use std::fs;

use db_core::{Config, Pool, PoolOptions};
use db_events::{Event, EventLogs, LogId, NewEvent, Selection, WriterId};
use db_notify::{Bus, BusOptions};
use db_testkit::{TestDb, TestServer, until};

use crate::support::{assert_dense, events, next_batch, numbered};

#[db_testkit::test(migrations = "../../migrations")]
async fn events_without_text_fill_a_page_too(db: TestDb) {
    const BATCH: i64 = 10_000;
    const BATCHES: i64 = 105;
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    sqlx::query(
        "insert into event_log_batches (log, first, last, bytes, types, data, is_final)
         select $1, (n - 1) * $2 + 1, n * $2, $2, '{n}', array_fill(''::text, array[$2::int]), false
         from generate_series(1, $3) as n",
    )
    .bind(log.0)
    .bind(BATCH)
    .bind(BATCHES)
    .execute(&db.pool())
    .await
    .expect("filled");
    let mut stream = events.stream(log, 0);

    let mut next = 1;
    while next <= BATCH * BATCHES {
        let page = next_batch(&mut stream).await.expect("more");
        assert!(page.len() <= 20_000, "a page of {} events", page.len());
        assert_dense(&page, next);
        next = page.last_id() + 1;
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn of_a_batch_that_is_larger_than_a_page_a_page_is_read(db: TestDb) {
    const EVENTS: i64 = 9_999;
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    // Each event's kind, version and data hold its number.
    let event = |id: i64| {
        let kind = format!("kind-{}", id % 7);
        let version = i16::try_from(id % 5).expect("a small number");
        NewEvent::new(kind, format!("{id:01600}")).version(version)
    };
    let check = |event: &Event| {
        let told = (event.data.parse(), event.kind.to_string(), i64::from(event.version));
        assert_eq!(told, (Ok(event.id), format!("kind-{}", event.id % 7), event.id % 5));
        assert_eq!(event.data.len(), 1600);
    };
    let large: Vec<NewEvent> = (2..=EVENTS).map(event).collect();
    events.append(log, &[event(1)]).await.expect("appended");
    events.finish(log, &large).await.expect("finished");

    for after in [0, 1, 2, 5000, EVENTS - 1] {
        let mut stream = events.stream(log, after);
        let mut last = after;
        while let Some(page) = next_batch(&mut stream).await {
            let text: usize = page.iter().map(|event| event.data.len()).sum();
            assert!(text <= 2 << 20, "a page of {text} bytes");
            assert_dense(&page, last + 1);
            page.iter().for_each(check);
            last = page.last_id();
        }
        assert_eq!(last, EVENTS);
    }
    let some = events.history(log, Selection::default().until(9000).kinds(["kind-3"])).collect().await;
    let some = some.expect("read");
    assert_eq!(some.len(), 1286);
    some.iter().for_each(check);
}

/// More batches than the planner would sort for one page.
const MANY: i64 = 30_000;

/// A server without statistics of its tables, as after a restore, which logs all plans.
async fn forgetful() -> TestServer {
    let settings = [
        ("autovacuum", "off"),
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
    ];
    let builder = settings
        .iter()
        .fold(db_embedded::Server::throwaway(), |builder, (name, value)| builder.setting(*name, *value));
    TestServer::start(builder).await.expect("a server")
}

async fn fill(db: &TestDb, log: LogId, batches: i64) {
    sqlx::query(
        "insert into event_log_batches (log, first, last, bytes, types, data, is_final)
         select $1, n * 3 - 2, n * 3, 300, '{line}', array_fill(repeat('x', 100), array[3]), n = $2
         from generate_series(1, $2) as n",
    )
    .bind(log.0)
    .bind(batches)
    .execute(&db.pool())
    .await
    .expect("filled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_plan_depends_on_what_is_known_of_the_tables() {
    for (batches, is_known) in [(3000, false), (MANY, false), (MANY, true)] {
        let server = forgetful().await;
        let db = server.create("../../migrations").await.expect("a database");
        let config = Config::from_url(&db.direct_url()).expect("an address");
        let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
        let pool = Pool::new(&config, PoolOptions::backend().max(1));
        let events = EventLogs::new(pool, &bus);
        let [full, other] = [(); 2].map(|()| events.create());
        let (full, other) = (full.await.expect("a log"), other.await.expect("a log"));
        events.append(other, &numbered(1, 1)).await.expect("appended");
        if is_known {
            // The statistics are wrong: the table has grown since.
            sqlx::query("analyze event_log_batches").execute(&db.pool()).await.expect("analyzed");
        }
        fill(&db, full, batches).await;
        let said = db.server().expect("our own").data_dir().with_file_name("log");
        let begun = fs::metadata(&said).expect("the server's log").len();

        // More often than PostgreSQL needs to switch to a generic plan.
        for after in 0..8 {
            assert_eq!(next_batch(&mut events.stream(full, after)).await.expect("a page")[0].id, after + 1);
            let last = events.history(full, Selection::default().after(3 * batches - 1).kinds(["line"]));
            assert_eq!(last.collect().await.expect("read").len(), 1);
            events.append(other, &numbered(1, 1)).await.expect("appended");
            events.append_once(other, (WriterId(7), after), &numbered(1, 1)).await.expect("appended");
        }
        events.remove(full).await.expect("removed");

        let plans =
            fs::read(&said).expect("the server's log").split_off(usize::try_from(begun).expect("small"));
        let plans = String::from_utf8(plans).expect("text");
        let ours: Vec<&str> =
            plans.split("duration: ").filter(|plan| plan.contains("event_log_batches")).collect();
        assert!(ours.len() > 30, "no plans were written: {plans}");
        for plan in ours {
            for costly in
                ["Sort Key", "Seq Scan on event_log_batches", "Bitmap Heap Scan on event_log_batches"]
            {
                assert!(!plan.contains(costly), "{batches} batches, known: {is_known}: {plan}");
            }
        }
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_log_is_removed_without_being_read_again_for_each_chunk(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    fill(&db, log, MANY).await;
    // While a snapshot may see removed rows, they stay in the table.
    let mut old = db.pool().begin().await.expect("begun");
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *old).await.expect("set");
    sqlx::query("select from event_logs").execute(&mut *old).await.expect("a snapshot");

    events.remove(log).await.expect("removed");

    let left: i64 = sqlx::query_scalar("select count(*) from event_log_batches")
        .fetch_one(&db.pool())
        .await
        .expect("a count");
    assert_eq!(left, 0);
    let counts = async || -> (i64, i64) {
        let counts = "select n_tup_del, seq_tup_read + coalesce(idx_tup_fetch, 0)
            from pg_stat_user_tables where relname = 'event_log_batches'";
        sqlx::query_as(counts).fetch_one(&db.pool()).await.expect("counts")
    };
    drop(events);
    until("the sessions have handed in their counts", async || counts().await.0 == MANY).await;
    let (_, read) = counts().await;
    assert!(read < 3 * MANY, "{read} rows were read to remove {MANY}");
    old.rollback().await.expect("ended");
}
