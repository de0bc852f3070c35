//! Many streams that catch up at once.

use db_core::{Config, Pool, PoolOptions};
use db_events::{EventLogs, EventOptions, LogId, LogTopics, NewEvent};
use db_notify::{Bus, BusOptions};
use db_testkit::{TestDb, until};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::support::{PATIENCE, numbered};

const POOL: u32 = 8;

async fn events_of(db: &TestDb, options: EventOptions) -> (EventLogs, Pool) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let direct = Config::from_url(&db.direct_url()).expect("an address past a pooler");
    let bus = Bus::open(&direct, BusOptions::default()).await.expect("a bus");
    let pool = Pool::new(&config, PoolOptions::backend().max(POOL));
    (EventLogs::with_options(pool.clone(), &bus, &LogTopics::default(), options), pool)
}

/// A finished log of `pages` pages.
async fn filled(events: &EventLogs, pages: usize) -> LogId {
    let log = events.create().await.expect("a log");
    let megabyte: Vec<NewEvent> = (0..16).map(|_| NewEvent::new("line", "x".repeat(1 << 16))).collect();
    for _ in 0..pages {
        events.append(log, &megabyte).await.expect("appended");
    }
    events.finish(log, &numbered(1, 1)).await.expect("finished");
    log
}

/// Reads a whole log, and counts its events.
fn read(events: &EventLogs, log: LogId) -> JoinHandle<usize> {
    let mut stream = events.stream(log, 0);
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(page) = stream.next_batch().await.expect("no error") {
            count += page.len();
        }
        count
    })
}

#[db_testkit::test(migrations = "../../migrations")]
async fn streams_that_catch_up_leave_most_of_the_pool_to_others(db: TestDb) {
    let default = EventOptions::default();
    for (options, places) in [(default, 2), (default.max_page_reads(3), 3), (default.max_page_reads(0), 1)] {
        let (events, pool) = events_of(&db, options).await;
        let mut logs = Vec::new();
        for _ in 0..20 {
            logs.push(filled(&events, 1).await);
        }
        // All permits for page reads are taken.
        let mut blocker = db.pool().begin().await.expect("begun");
        sqlx::query("lock table event_log_batches").execute(&mut *blocker).await.expect("locked");
        let mut readers: Vec<_> = logs.iter().cycle().take(200).map(|log| read(&events, *log)).collect();
        until("as many read as may", async || events.state().pages == u64::from(places)).await;

        let created = timeout(PATIENCE, events.create()).await.expect("there are connections left");

        created.expect("a log");
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.waiting), (places, 0), "{stats:?}");
        // A stream that reads a page for others may be dropped.
        for gone in readers.drain(..60) {
            gone.abort();
        }
        blocker.rollback().await.expect("released");
        for reader in readers {
            let count = timeout(PATIENCE, reader).await.expect("in time").expect("no panic");
            assert_eq!(count, 17);
        }
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn streams_that_want_the_same_page_at_once_read_it_once(db: TestDb) {
    const STREAMS: u64 = 100;
    const PAGES: usize = 8;
    let (events, _pool) = events_of(&db, EventOptions::default()).await;
    let log = filled(&events, PAGES).await;
    let mut blocker = db.pool().begin().await.expect("begun");
    sqlx::query("lock table event_log_batches").execute(&mut *blocker).await.expect("locked");
    let readers: Vec<_> = (0..STREAMS).map(|_| read(&events, log)).collect();
    until("one reads", async || events.state().pages == 1).await;

    blocker.rollback().await.expect("released");

    for reader in readers {
        let count = timeout(PATIENCE, reader).await.expect("in time").expect("no panic");
        assert_eq!(count, 16 * PAGES + 1);
    }
    // Each stream reads the last page by itself; late streams may read some other pages again.
    let state = events.state();
    assert!(state.pages < 3 * STREAMS, "{state:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_stream_may_ask_for_small_pages(db: TestDb) {
    let (events, _pool) = events_of(&db, EventOptions::default()).await;
    let log = filled(&events, 2).await;
    let mut stream = events.stream(log, 3).page_bytes(1 << 17);

    let mut ids = Vec::new();
    while let Some(page) = timeout(PATIENCE, stream.next_batch()).await.expect("in time").expect("no error") {
        assert!(page.len() <= 3, "{} events of 64 KiB", page.len());
        ids.extend(page.iter().map(|event| event.id));
    }

    assert_eq!(ids, (4..=33).collect::<Vec<_>>());
}

/// Streams, histories, appends and reads of the head at the same time all succeed.
#[db_testkit::test(migrations = "../../migrations")]
async fn a_pool_of_one_connection_serves_streams_histories_and_appends(db: TestDb) {
    let config = Config::from_url(&db.url()).expect("an address");
    let direct = Config::from_url(&db.direct_url()).expect("an address");
    let bus = Bus::open(&direct, BusOptions::default()).await.expect("a bus");
    let events = EventLogs::new(Pool::new(&config, PoolOptions::backend().max(1)), &bus);
    let full = filled(&events, 3).await;
    let busy = events.create().await.expect("a log");
    let mut all = JoinSet::new();
    for _ in 0..10 {
        let reader = read(&events, full);
        all.spawn(async move { assert_eq!(reader.await.expect("no panic"), 49) });
        let history = events.history(full, db_events::Selection::default());
        all.spawn(async move { assert_eq!(history.collect().await.expect("read").len(), 49) });
        let events = events.clone();
        all.spawn(async move {
            events.append(busy, &numbered(1, 1)).await.expect("appended");
        });
    }

    let done = timeout(PATIENCE, async {
        while let Some(one) = all.join_next().await {
            one.expect("no panic");
        }
    });

    done.await.expect("in time");
}
