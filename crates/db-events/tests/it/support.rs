//! Helpers of the tests.

use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_events::{Error, Event, EventLogs, EventStream, Events, LogId, NewEvent};
use db_notify::{Bus, BusOptions};
use db_testkit::{Proxy, TestDb};
use tokio::time::timeout;

/// Limit for every wait in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn events(db: &TestDb) -> EventLogs {
    events_and_bus(db).await.0
}

pub(crate) async fn events_and_bus(db: &TestDb) -> (EventLogs, Bus) {
    events_at(&db.url(), db).await
}

/// Event logs whose pool connects through a proxy, and whose bus does not.
pub(crate) async fn events_behind_a_proxy(db: &TestDb) -> (Proxy, EventLogs) {
    let proxy = Proxy::start(db).expect("a proxy");
    let (events, _) = events_at(&proxy.url(), db).await;
    (proxy, events)
}

async fn events_at(url: &str, db: &TestDb) -> (EventLogs, Bus) {
    let config = Config::from_url(url).expect("an address");
    let direct = Config::from_url(&db.direct_url()).expect("an address past a pooler");
    let bus = Bus::open(&direct, BusOptions::default()).await.expect("a bus");
    (EventLogs::new(Pool::new(&config, PoolOptions::backend()), &bus), bus)
}

/// `count` events, whose data are numbers from `from` on.
pub(crate) fn numbered(from: i64, count: i64) -> Vec<NewEvent> {
    (from..from + count).map(|n| NewEvent::new("n", n.to_string())).collect()
}

/// Reads to the log's end.
pub(crate) async fn read_to_end(mut stream: EventStream) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(batch) = next_batch(&mut stream).await {
        all.extend(batch);
    }
    all
}

pub(crate) async fn next_batch(stream: &mut EventStream) -> Option<Events> {
    timeout(PATIENCE, stream.next_batch()).await.expect("events in time").expect("no error")
}

/// Repeats the query until it returns a row.
pub(crate) async fn answer(db: &TestDb, query: &'static str) -> i32 {
    let asked = timeout(PATIENCE, async {
        loop {
            if let Some(answer) =
                sqlx::query_scalar(query).fetch_optional(&db.pool()).await.expect("no error")
            {
                break answer;
            }
            tokio::task::yield_now().await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("no answer to {query}"))
}

pub(crate) fn assert_dense(events: &[Event], from: i64) {
    let ids: Vec<i64> = events.iter().map(|event| event.id).collect();
    let dense: Vec<i64> = (from..).take(ids.len()).collect();
    assert_eq!(ids, dense);
}

/// The error that ends a stream, which must return no event before.
pub(crate) async fn ended(stream: &mut EventStream) -> Error {
    timeout(PATIENCE, stream.next_batch()).await.expect("an end in time").expect_err("no more events")
}

/// The ids of the next events.
pub(crate) async fn next_ids(stream: &mut EventStream) -> Vec<i64> {
    next_batch(stream).await.expect("more").iter().map(|event| event.id).collect()
}

/// Inserts batches of one event each without a notification. The last one may finish the log.
pub(crate) async fn batches_by_hand(db: &TestDb, log: LogId, (from, to): (i64, i64), is_final: bool) {
    sqlx::query(
        "insert into event_log_batches
         select $1, n, n, 1, '{n}', array[n::text], $4 and n = $3 from generate_series($2, $3) as n",
    )
    .bind(log.0)
    .bind(from)
    .bind(to)
    .bind(is_final)
    .execute(&db.pool())
    .await
    .expect("stored");
}

/// Deletes the end of a log, as a lagging standby lacks it.
pub(crate) async fn lose_after(db: &TestDb, log: LogId, last: i64) {
    let lose = "delete from event_log_batches where log = $1 and last > $2";
    sqlx::query(lose).bind(log.0).bind(last).execute(&db.pool()).await.expect("lost");
}

/// Removes the beginning of a log.
pub(crate) async fn trim(db: &TestDb, log: LogId, last: i64) {
    let trim = "delete from event_log_batches where log = $1 and last <= $2";
    sqlx::query(trim).bind(log.0).bind(last).execute(&db.pool()).await.expect("trimmed");
}

pub(crate) const NO_LOG: LogId = LogId(i64::MAX);

/// Appends an event, and sends no notification.
pub(crate) async fn append_by_hand(db: &TestDb, log: LogId, id: i64) {
    sqlx::query("insert into event_log_batches values ($1, $2, $2, 1, '{n}', '{by hand}', false)")
        .bind(log.0)
        .bind(id)
        .execute(&db.pool())
        .await
        .expect("appended");
}

/// An append of a batch by hand, in a transaction that stays open.
pub(crate) async fn append_and_stay_open(
    db: &TestDb,
    log: LogId,
    (first, last): (i64, i64),
) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut open = db.pool().begin().await.expect("begun");
    sqlx::query(
        "insert into event_log_batches
         values ($1, $2, $3, 2, '{n}', array_fill('slow'::text, array[($3 - $2 + 1)::int]), false)",
    )
    .bind(log.0)
    .bind(first)
    .bind(last)
    .execute(&mut *open)
    .await
    .expect("appended");
    open
}

/// Waits until a session of the backend pool waits for another session's transaction.
pub(crate) async fn until_one_waits(db: &TestDb) {
    let waiting = "select pid from pg_stat_activity
        where datname = current_database() and application_name = 'backend' and wait_event_type = 'Lock'";
    answer(db, waiting).await;
}

/// Runs the work of a second process of these tests.
pub(crate) fn run(what: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(what);
}
