//! Runtimes that end before the followers do.

use std::thread;

use db_core::{Config, Pool, PoolOptions};
use db_events::{Error, EventLogs, EventStream, LogId};
use db_notify::{Bus, BusOptions};
use db_testkit::{TestDb, until};
use tokio::runtime::{Builder, Runtime};

use crate::support::{events, next_batch, numbered};

/// A runtime on another thread, which ends on request.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Ends the runtime, even while tasks run on it.
async fn end(runtime: Runtime) {
    tokio::task::spawn_blocking(move || drop(runtime)).await.expect("ended");
}

/// Follows until the stream waits, and returns the stream.
async fn wait_in(stream: &mut EventStream, events: &EventLogs) {
    let pages = events.state().pages;
    let waiting = async {
        until("it has caught up", async || events.state().pages >= pages + 2).await;
    };
    tokio::select! {
        batch = stream.next_batch() => panic!("{batch:?}"),
        () = waiting => {}
    }
}

/// Starts to follow a log on a runtime that then ends, or is no longer driven: then it is returned.
async fn follow_elsewhere(events: &EventLogs, log: LogId) -> Runtime {
    let events = events.clone();
    let following = thread::spawn(move || {
        let runtime = runtime();
        runtime.block_on(async {
            let mut stream = events.stream(log, 0);
            wait_in(&mut stream, &events).await;
            // The stream still follows, but nothing drives its runtime.
            std::mem::forget(stream);
        });
        runtime
    });
    tokio::task::spawn_blocking(|| following.join().expect("no panic")).await.expect("joined")
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_log_first_followed_on_a_runtime_that_ends_is_followed_on(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let elsewhere = follow_elsewhere(&events, log).await;
    let mut stream = events.stream(log, 0);
    wait_in(&mut stream, &events).await;

    // No thread drives the runtime now.
    events.append(log, &numbered(1, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, 1);

    end(elsewhere).await;
    events.append(log, &numbered(2, 1)).await.expect("appended");
    assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn streams_go_on_when_the_runtime_of_their_bus_has_ended(db: TestDb) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let direct = Config::from_url(&db.direct_url()).expect("an address past a pooler");
    let pool = Pool::new(&config, PoolOptions::backend());
    let (bus, elsewhere) = tokio::task::spawn_blocking(move || {
        let runtime = runtime();
        let bus = runtime.block_on(Bus::open(&direct, BusOptions::default())).expect("a bus");
        (bus, runtime)
    })
    .await
    .expect("opened");
    let events = EventLogs::new(pool, &bus);
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    // It joins on a runtime that no thread drives.
    wait_in(&mut stream, &events).await;

    end(elsewhere).await;

    for n in 1..=2 {
        events.append(log, &numbered(n, 1)).await.expect("appended");
        assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, n);
    }
    assert!(events.state().is_polling);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_appender_whose_runtime_has_ended_is_closed(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let (appender, elsewhere) = {
        let events = events.clone();
        tokio::task::spawn_blocking(move || {
            let runtime = runtime();
            let entered = runtime.enter();
            let appender = events.appender(log);
            drop(entered);
            (appender, runtime)
        })
        .await
        .expect("made")
    };
    end(elsewhere).await;

    let [event, pushed] = [1, 2].map(|n| numbered(n, 1).remove(0));
    assert!(matches!(appender.append(event).await, Err(Error::AppenderClosed { .. })));
    assert!(matches!(appender.push(pushed).await, Err(Error::AppenderClosed { .. })));
    assert!(matches!(appender.flush().await, Err(Error::AppenderClosed { .. })));
}
