//! One reader for all followers of a log in a process.

use db_events::{Error, Event, EventLogs, EventStream, POLL_FLOOR};
use db_testkit::{Proxy, TestDb, until};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::support::{PATIENCE, append_by_hand, assert_dense, events, next_batch, numbered};

/// A task that follows a log, and the events that it has read.
fn follow(mut stream: EventStream) -> (JoinHandle<()>, mpsc::UnboundedReceiver<i64>) {
    let (seen, ids) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        while let Some(batch) = stream.next_batch().await.expect("no error") {
            for event in batch {
                seen.send(event.id).expect("the test goes on");
            }
        }
    });
    (task, ids)
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_hundred_followers_cost_one_query_for_each_append(db: TestDb) {
    const FOLLOWERS: u64 = 100;
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    append_by_hand(&db, log, 1).await;
    let (tasks, mut ids): (Vec<_>, Vec<_>) = (0..FOLLOWERS).map(|_| follow(events.stream(log, 0))).unzip();
    until("each has read what was there, and looked once more", async || {
        events.state().pages == 2 * FOLLOWERS
    })
    .await;
    assert_eq!(events.state().followed, 1);

    for n in 2..=21 {
        events.append(log, &numbered(n, 1)).await.expect("appended");
    }
    events.finish(log, &numbered(22, 1)).await.expect("finished");
    for task in tasks {
        timeout(PATIENCE, task).await.expect("in time").expect("no panic");
    }

    for ids in &mut ids {
        let seen: Vec<i64> = std::iter::from_fn(|| ids.try_recv().ok()).collect();
        assert_eq!(seen, (1..=22).collect::<Vec<_>>());
    }
    // One page for each append, and perhaps an empty one for each append and each poll.
    let state = events.state();
    assert!(state.pages <= 2 * FOLLOWERS + 2 * 21 + state.head_polls, "{state:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_stream_that_is_too_slow_goes_back_to_pages_and_misses_nothing(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let (mut slow, mut quick) = (events.stream(log, 0), events.stream(log, 0));
    events.append(log, &numbered(1, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut slow).await.expect("the first").len(), 1);
    assert_eq!(next_batch(&mut quick).await.expect("the first").len(), 1);

    // Many more events than are kept for a slow follower.
    for n in 2..=200 {
        events.append(log, &numbered(n, 1)).await.expect("appended");
        assert_eq!(next_batch(&mut quick).await.expect("more")[0].id, n);
    }
    let pages = events.state().pages;
    let mut seen: Vec<Event> = Vec::new();
    while seen.len() < 199 {
        seen.extend(next_batch(&mut slow).await.expect("more"));
    }
    assert_dense(&seen, 2);
    assert!(events.state().pages > pages, "it has read by itself");

    // Afterwards it follows like the others.
    let pages = events.state().pages;
    for n in 201..=220 {
        events.append(log, &numbered(n, 1)).await.expect("appended");
        assert_eq!(next_batch(&mut slow).await.expect("more")[0].id, n);
        assert_eq!(next_batch(&mut quick).await.expect("more")[0].id, n);
    }
    let state = events.state();
    assert!(state.pages <= pages + 2 * 20 + state.head_polls, "{state:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_reader_ends_with_its_last_follower_and_begins_again_with_the_next(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let (first, _) = follow(events.stream(log, 0));
    let (second, mut ids) = follow(events.stream(log, 0));
    let here = || (events.state().followed, events.state().watched.here);
    until("both follow", async || events.state().pages == 4).await;
    assert_eq!(here(), (1, 1));

    first.abort();
    events.append(log, &numbered(1, 1)).await.expect("appended");
    assert_eq!(timeout(PATIENCE, ids.recv()).await.expect("in time"), Some(1));
    second.abort();

    until("nobody follows", async || here() == (0, 0)).await;
    let mut third = events.stream(log, 1);
    events.append(log, &numbered(2, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut third).await.expect("more")[0].id, 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_gap_asks_once_for_all_logs_and_reads_those_that_have_moved(db: TestDb) {
    const LOGS: usize = 50;
    let events = events(&db).await;
    let mut following = Vec::new();
    for _ in 0..LOGS {
        let log = events.create().await.expect("a log");
        append_by_hand(&db, log, 1).await;
        let (_, ids) = follow(events.stream(log, 0));
        following.push((log, ids));
    }
    until("all of them are followed", async || events.state().pages == 2 * LOGS as u64).await;
    let before = events.state();
    let (log, ids) = &mut following[7];
    append_by_hand(&db, *log, 2).await;

    let kill = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
                where datname = current_database() and application_name = 'bus'";
    sqlx::query(kill).execute(&db.pool()).await.expect("killed");

    for id in 1..=2 {
        assert_eq!(timeout(PATIENCE, ids.recv()).await.expect("in time"), Some(id));
    }
    let after = events.state();
    // The loss, and on a slow machine the poll at the floor.
    assert!((1..=3).contains(&(after.head_polls - before.head_polls)), "{before:?} {after:?}");
    assert!(after.pages - before.pages <= 3, "{before:?} {after:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_log_that_is_removed_while_it_is_followed_ends_its_streams_with_the_reason(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 1)).await.expect("appended");
    let mut streams = JoinSet::new();
    for _ in 0..3 {
        let mut stream = events.stream(log, 0);
        next_batch(&mut stream).await.expect("the first");
        streams.spawn(async move { stream.next_batch().await });
    }
    // At once, since a log without events that still exists is another case.
    let remove = "with events as (delete from event_log_batches) delete from event_logs";
    sqlx::query(remove).execute(&db.pool()).await.expect("removed");

    while let Some(ended) = timeout(PATIENCE, streams.join_next()).await.expect("in time") {
        let ended = ended.expect("no panic");
        assert!(matches!(ended, Err(Error::Removed { log: removed, .. }) if removed == log), "{ended:?}");
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn streams_go_on_when_the_bus_is_closed(db: TestDb) {
    let (events, bus) = crate::support::events_and_bus(&db).await;
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    events.append(log, &numbered(1, 1)).await.expect("appended");
    next_batch(&mut stream).await.expect("the first");
    assert!(!events.state().is_polling);

    assert!(bus.close(PATIENCE).await);

    events.append(log, &numbered(2, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, 2);
    assert!(events.state().is_polling);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn streams_of_a_pool_that_is_closed_end_with_the_reason(db: TestDb) {
    let config = db_core::Config::from_url(&db.url()).expect("an address");
    let direct = db_core::Config::from_url(&db.direct_url()).expect("an address");
    let bus = db_notify::Bus::open(&direct, db_notify::BusOptions::default()).await.expect("a bus");
    let pool = db_core::Pool::new(&config, db_core::PoolOptions::backend());
    let events = EventLogs::new(pool.clone(), &bus);
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    let waiting = tokio::spawn(async move { stream.next_batch().await });
    until("it waits", async || events.state().pages == 2).await;

    pool.close(PATIENCE).await;

    let ended = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic");
    assert!(matches!(&ended, Err(error) if error.is_closed()), "{ended:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_whose_answer_was_lost_wakes_followers(db: TestDb) {
    let reading = events(&db).await;
    let log = reading.create().await.expect("a log");
    let (_, mut ids) = follow(reading.stream(log, 0));
    until("it follows", async || reading.state().pages == 2).await;
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = db_core::Config::from_url(&proxy.url()).expect("the proxy's address");
    let direct = db_core::Config::from_url(&db.direct_url()).expect("an address");
    let bus = db_notify::Bus::open(&direct, db_notify::BusOptions::default()).await.expect("a bus");
    let writing = EventLogs::new(db_core::Pool::new(&config, db_core::PoolOptions::backend()), &bus);
    writing.head(log).await.expect("a connection is open");

    proxy.cut_answer_to("insert into event_log_batches");
    let lost = writing.append(log, &numbered(1, 1)).await;

    assert!(matches!(lost, Err(Error::Database { .. })), "{lost:?}");
    let woken = timeout(POLL_FLOOR / 2, ids.recv()).await;
    assert_eq!(woken.expect("long before it would look by itself"), Some(1));
}
