//! An append whose future was dropped wakes the followers, too.

use db_core::{Config, Pool, PoolOptions};
use db_events::{EventLogs, LogId};
use db_notify::{Bus, BusOptions, Subscription, Topic};
use db_testkit::{TestDb, poll_then_drop};
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::support::{PATIENCE, numbered};

/// A writer that does not know yet which logs are watched, so that it notifies for all, and the bus of another process.
async fn writer_and_bus(db: &TestDb) -> (EventLogs, Bus) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let direct = Config::from_url(&db.direct_url()).expect("an address past a pooler");
    let bus = Bus::open(&direct, BusOptions::default()).await.expect("a bus");
    let other = Bus::open(&direct, BusOptions::default()).await.expect("another bus");
    let pool = Pool::new(&config, PoolOptions::backend().max(1));
    (EventLogs::new(pool, &bus), other)
}

fn follow(bus: &Bus, log: LogId) -> Subscription {
    bus.subscribe(&Topic::new(format!("log/{log}")).expect("a topic"), 10)
}

async fn is_stored(db: &TestDb, log: LogId) -> bool {
    db.until_quiet().await;
    let count =
        sqlx::query_scalar("select exists (select from event_log_batches where log = $1)").bind(log.0);
    count.fetch_one(&db.pool()).await.expect("an answer")
}

/// Drops such an append at each of its polls, until a dropped one was stored all the same: the cancel request may arrive before
/// or after the statement's end. Each stored append must have been notified.
async fn drop_at_any_poll<F>(db: &TestDb, append: impl Fn(EventLogs, LogId) -> F)
where
    F: Future<Output = ()>,
{
    let (events, other) = writer_and_bus(db).await;
    let warm = events.create().await.expect("a log");
    append(events.clone(), warm).await;
    let mut stored = 0;
    while stored == 0 {
        for polls in 0.. {
            let log = events.create().await.expect("a log");
            let mut followed = follow(&other, log);
            if poll_then_drop(append(events.clone(), log), polls).await.is_some() {
                break;
            }
            if is_stored(db, log).await {
                stored += 1;
                let told = timeout(PATIENCE, followed.recv()).await;
                assert!(told.is_ok(), "stored, dropped after {polls} polls, and nobody is told");
            }
        }
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_that_is_dropped_at_any_poll_wakes_followers_if_it_was_stored(db: TestDb) {
    let append = async |events: EventLogs, log| {
        events.append(log, &numbered(1, 1)).await.expect("appended");
    };
    drop_at_any_poll(&db, append).await;
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_finish_that_is_dropped_at_any_poll_wakes_followers_if_it_was_stored(db: TestDb) {
    let finish = async |events: EventLogs, log| {
        let finish = events.writer(log, 0);
        finish.finish_with(&numbered(1, 1), |_| async { Ok(()) }.boxed()).await.expect("finished");
    };
    drop_at_any_poll(&db, finish).await;
}
