//! Runtimes that end before the buses and maps that were made on them.

use std::thread;
use std::time::Duration;

use db_notify::{Bus, BusOptions, MemoryLink, NotifyError, WatchOptions, WatchedTopics};
use db_testkit::until;
use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::support::{PATIENCE, topic};

/// Runs `work` on a runtime of its own, which has ended when this returns.
async fn on_a_runtime_that_ends<T: Send + 'static>(work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let made = thread::spawn(move || {
        let runtime: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work())
    });
    tokio::task::spawn_blocking(|| made.join().expect("no panic")).await.expect("joined")
}

async fn bus(memory: &MemoryLink) -> Bus {
    Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus")
}

fn map(bus: &Bus) -> WatchedTopics {
    WatchedTopics::new(bus, &topic("watched"), &WatchOptions::default().renewal(Duration::from_millis(20)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_outlives_the_runtime_it_was_made_on() {
    let memory = MemoryLink::new();
    let (bus, other) = (bus(&memory).await, bus(&memory).await);
    let made = on_a_runtime_that_ends({
        let bus = bus.clone();
        async move || map(&bus)
    })
    .await;
    let elsewhere = map(&other);
    let mut there = elsewhere.watch(&topic("there"), 10);
    let mut here = made.watch(&topic("here"), 10);

    until("each knows of the other", async || {
        made.is_watched(&topic("there")) && elsewhere.is_watched(&topic("here"))
    })
    .await;
    until("each trusts itself", async || !made.state().in_doubt && !elsewhere.state().in_doubt).await;
    assert!(made.notify(&topic("there")).expect("an open bus"));
    assert!(elsewhere.notify(&topic("here")).expect("an open bus"));
    assert!(!made.notify(&topic("nowhere")).expect("an open bus"));

    for watch in [&mut there, &mut here] {
        assert!(timeout(PATIENCE, watch.recv()).await.expect("in time").is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_whose_runtime_has_ended_is_closed() {
    let memory = MemoryLink::new();
    let opened = on_a_runtime_that_ends({
        let memory = memory.clone();
        async move || {
            let bus = bus(&memory).await;
            bus.notify(&topic("t")).await.expect("sent");
            bus
        }
    })
    .await;
    // The runtime ends before the first poll of the tasks.
    let unborn = on_a_runtime_that_ends({
        let memory = memory.clone();
        async move || Bus::lazy_with_link(memory, &BusOptions::default()).expect("a bus")
    })
    .await;

    for bus in [opened, unborn] {
        assert!(bus.runtime().is_none());
        let mut subscription = bus.subscribe(&topic("t"), 1);
        assert_eq!(timeout(PATIENCE, subscription.recv()).await, Ok(None));
        let sent = timeout(PATIENCE, bus.notify(&topic("t"))).await;
        assert_eq!(sent, Ok(Err(NotifyError::Closed)));
        assert_eq!(bus.notify_soon(&topic("t")), Err(NotifyError::Closed));
        let watched = map(&bus);
        assert_eq!(watched.notify(&topic("t")), Err(NotifyError::Closed));
        assert!(watched.state().in_doubt);
        assert_eq!(watched.watch(&topic("t"), 1).recv().now_or_never(), Some(None));
        assert!(!bus.state().is_connected());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_a_bus_end_with_its_runtime() {
    let memory = MemoryLink::new();
    let (bus, ending) = {
        let memory = memory.clone();
        let made = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            (runtime.block_on(bus(&memory)), runtime)
        });
        tokio::task::spawn_blocking(|| made.join().expect("no panic")).await.expect("joined")
    };
    let mut subscription = bus.subscribe(&topic("t"), 1);
    // The runtime is not driven, so both wait.
    let mut sending = Box::pin(async { bus.notify(&topic("t")).await });
    assert!((&mut sending).now_or_never().is_none() && subscription.recv().now_or_never().is_none());

    ending.shutdown_background();

    assert_eq!(timeout(PATIENCE, sending).await, Ok(Err(NotifyError::Closed)));
    assert_eq!(timeout(PATIENCE, subscription.recv()).await, Ok(None));
}
