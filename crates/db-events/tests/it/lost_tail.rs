//! A primary is lost, with events that its standby had not received.

use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_events::{Error, EventLogs, EventStream, LogId, NewEvent, SCHEMA};
use db_notify::{Bus, BusOptions};
use db_testkit::{Cluster, Proxy, Stop};
use sqlx::Connection;
use tokio::time::timeout;

use crate::support::{next_batch, next_ids, numbered};

/// Limit for a watcher's wait for the new primary.
const LONG: Duration = Duration::from_mins(2);

async fn open(url: &str) -> EventLogs {
    let config = Config::from_url(url).expect("an address");
    let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
    EventLogs::new(Pool::new(&config, PoolOptions::backend()), &bus)
}

/// The error that ends a watcher; it waits while the server is away.
async fn told(mut stream: EventStream) -> Error {
    timeout(LONG, stream.next_batch()).await.expect("in time").expect_err("it was told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_a_log_whose_tail_was_lost_with_the_primary_get_the_last_unchanged_event() {
    let mut cluster = Cluster::start().await.expect("a cluster");
    let (old, new) = (cluster.primary(), cluster.standby(0));
    let proxy = Proxy::to_address(&old.url()).expect("a proxy");
    let mut setup = sqlx::PgConnection::connect(&old.url()).await.expect("a connection");
    for schema in SCHEMA {
        sqlx::raw_sql(schema.up).execute(&mut setup).await.expect("the tables");
    }
    drop(setup);
    let events = open(&proxy.url()).await;
    let (log, short) = (events.create().await.expect("a log"), events.create().await.expect("a log"));
    let mut streams = [events.stream(log, 0), events.stream(log, 0), events.stream(short, 0)];
    for n in 1..=5 {
        append(&events, &mut streams, log, n).await;
    }
    events.append(short, &numbered(1, 3)).await.expect("appended");
    assert_eq!(next_ids(&mut streams[2]).await, [1, 2, 3]);
    cluster.part(&new).await.expect("cut off");
    for n in 6..=10 {
        append(&events, &mut streams, log, n).await;
    }
    let kept = (streams[0].cursor(), streams[0].mark().expect("the last event's"));
    let [first, second, whole] = streams;
    let waiting = [tokio::spawn(told(first)), tokio::spawn(told(second))];

    cluster.stop(&old, Stop::Immediate).await.expect("stopped");
    cluster.promote(&new).await.expect("promoted");
    proxy.lead_to(&new.url()).expect("redirected");
    // Another writer goes on, and soon the log is longer than before.
    let other = open(&new.url()).await;
    let again: Vec<NewEvent> = (6..=12).map(|n| NewEvent::new("again", n.to_string())).collect();
    assert_eq!(other.append(log, &again).await.expect("appended"), 6..=12);

    for told in waiting {
        let told = told.await.expect("no panic");
        assert!(matches!(told, Error::Rewound { log: which, last: 5 } if which == log), "{told:?}");
    }
    let told = told(events.resume(log, kept.0, kept.1)).await;
    assert!(matches!(told, Error::Rewound { .. }), "{told:?}");
    let mut resumed = events.stream(log, 5);
    assert_eq!(next_ids(&mut resumed).await, (6..=12).collect::<Vec<_>>());
    // The other log has lost nothing.
    let mut whole = whole;
    other.append(short, &numbered(4, 1)).await.expect("appended");
    let next = timeout(LONG, next_batch(&mut whole)).await.expect("in time").expect("more");
    assert_eq!(next[0].id, 4);
}

async fn append(events: &EventLogs, streams: &mut [EventStream; 3], log: LogId, n: i64) {
    events.append(log, &numbered(n, 1)).await.expect("appended");
    for stream in &mut streams[..2] {
        assert_eq!(next_ids(stream).await, [n]);
    }
}
