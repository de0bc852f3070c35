//! An append notifies if its log is followed.

use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_events::{EventLogs, LogTopics, POLL_FLOOR};
use db_notify::{Bus, BusOptions, Topic, WatchOptions};
use db_testkit::{TestDb, until};
use tokio::time::timeout;

use crate::support::{next_batch, numbered};

/// The event logs of a process that knows which logs are followed, and the process's bus.
async fn process(db: &TestDb) -> (EventLogs, Bus) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let direct = Config::from_url(&db.direct_url()).expect("an address past a pooler");
    let bus = Bus::open(&direct, BusOptions::default()).await.expect("a bus");
    let options = WatchOptions::default().renewal(Duration::from_millis(500));
    let watched = Topic::new("watched").expect("a topic");
    let topics = LogTopics::new("build_events_", watched).expect("topics").options(options);
    let events = EventLogs::with_topics(Pool::new(&config, PoolOptions::backend()), &bus, &topics);
    until("it is sure of who follows what", async || !events.state().watched.in_doubt).await;
    (events, bus)
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_to_a_log_without_followers_sends_no_notification(db: TestDb) {
    let (writer, bus) = process(&db).await;
    let log = writer.create().await.expect("a log");
    let sent = bus.state().sent;

    for n in 1..=10 {
        writer.append(log, &numbered(n, 1)).await.expect("appended");
    }

    assert_eq!(writer.state().watched.gated, 10);
    assert_eq!((bus.state().sent, bus.state().pending), (sent, 0));
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_new_follower_is_woken_from_the_first_append_on(db: TestDb) {
    let (writer, _bus) = process(&db).await;
    let (reader, _other) = process(&db).await;
    let log = writer.create().await.expect("a log");

    let mut stream = reader.stream(log, 0);
    writer.append(log, &numbered(1, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut stream).await.expect("the first")[0].id, 1);
    // At once, whether or not the writer knows of the reader yet.
    writer.append(log, &numbered(2, 1)).await.expect("appended");
    let second = timeout(POLL_FLOOR / 2, next_batch(&mut stream)).await;
    assert_eq!(second.expect("long before it would look by itself").expect("the second")[0].id, 2);

    until("the writer knows", async || writer.state().watched.elsewhere == 1).await;
    writer.append(log, &numbered(3, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut stream).await.expect("the third")[0].id, 3);

    drop(stream);
    until("the writer knows that nobody follows", async || writer.state().watched.elsewhere == 0).await;
    let gated = writer.state().watched.gated;
    writer.append(log, &numbered(4, 1)).await.expect("appended");
    assert_eq!(writer.state().watched.gated, gated + 1);
}
