//! A watch begins while another process notifies: in each order of their steps, the watcher is woken or has read the data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use db_core::Config;
use db_notify::link::Link;
use db_notify::{Bus, BusOptions, MemoryLink, PostgresLink, Topic, WatchOptions, WatchedTopics};
use db_testkit::TestDb;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

/// No watcher reads by itself, so a watcher that still waits was not woken.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many pairs run at the same time.
const TOGETHER: usize = 250;

/// The delay of each step: before watching, before reading, before storing, before notifying.
const STEPS: [usize; 4] = [20, 5, 20, 5];

/// The buses and maps of two processes.
struct Two {
    watching: WatchedTopics,
    writing: WatchedTopics,
}

impl Two {
    async fn over<L: Link>(link: L) -> Self {
        let map = async |renewal: Duration| {
            let bus = Bus::with_link(link.clone(), BusOptions::default()).await.expect("a bus");
            let announcements = Topic::new("watched").expect("a topic");
            WatchedTopics::new(&bus, &announcements, &WatchOptions::default().renewal(renewal))
        };
        // The watching process does not renew, since a renewal would wake watchers. The writing process is out of doubt soon,
        // and its marks outlast a pause of the machine.
        let watching = map(Duration::from_hours(1)).await;
        let writing = map(Duration::from_secs(4)).await;
        let trusted = timeout(PATIENCE, async {
            while writing.state().in_doubt {
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(trusted.await.is_ok(), "{writing:?}");
        Self { watching, writing }
    }

    /// One process watches and the other notifies, with a delay before each step.
    fn meet(&self, number: usize, tasks: &mut JoinSet<Met>) {
        let mut rest = number;
        let [watch, look, store, notify] = STEPS.map(|steps| {
            let far = rest % steps;
            rest /= steps;
            far
        });
        let topic = Topic::new(format!("topic/{number}")).expect("a topic");
        let stored = Arc::new(AtomicBool::new(false));

        let (watching, name, seen) = (self.watching.clone(), topic.clone(), Arc::clone(&stored));
        tasks.spawn(async move {
            put_off(watch).await;
            let mut watch = watching.watch(&name, 1);
            put_off(look).await;
            if seen.load(Ordering::SeqCst) {
                return Met::Saw;
            }
            loop {
                let woken = timeout(PATIENCE, watch.recv()).await;
                assert!(woken.is_ok(), "{name} was not woken; who watches: {watching:?}");
                if seen.load(Ordering::SeqCst) {
                    return Met::Woken;
                }
            }
        });
        let writing = self.writing.clone();
        tasks.spawn(async move {
            put_off(store).await;
            stored.store(true, Ordering::SeqCst);
            put_off(notify).await;
            writing.notify(&topic).expect("an open bus");
            Met::Wrote
        });
    }

    /// Runs all pairs, each with a topic of its own.
    async fn meet_in_all_ways(&self) {
        let all: usize = STEPS.iter().product();
        let (mut saw, mut woken) = (0, 0);
        for first in (0..all).step_by(TOGETHER) {
            let mut tasks = JoinSet::new();
            for number in first..first + TOGETHER {
                self.meet(number, &mut tasks);
            }
            for met in tasks.join_all().await {
                saw += usize::from(met == Met::Saw);
                woken += usize::from(met == Met::Woken);
            }
        }

        let state = self.writing.state();
        println!("of {all}: {saw} had seen it, {woken} were woken; who writes: {state:?}");
        assert_eq!(saw + woken, all);
        // The test shows something only if some notifications met a mark, and some were dropped and recovered.
        assert!(saw > 0 && woken > 0 && state.gated < all as u64 && state.recovered > 0, "{state:?}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Wrote,
    Saw,
    Woken,
}

/// Yields a number of times, and then sleeps for a number of milliseconds, for steps that pass the server.
async fn put_off(far: usize) {
    const TURNS: usize = 10;
    for _ in 0..far.min(TURNS) {
        yield_now().await;
    }
    if far > TURNS {
        sleep(Duration::from_millis((far - TURNS) as u64)).await;
    }
}

#[db_testkit::test]
async fn a_watch_that_begins_at_any_point_of_a_notify_is_woken_or_has_read(db: TestDb) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let two = Two::over(PostgresLink::new(&config, &BusOptions::default())).await;

    two.meet_in_all_ways().await;
}

/// On one thread, the order of the steps is the same each time.
#[tokio::test(start_paused = true)]
async fn in_memory_a_watch_that_begins_at_any_point_of_a_notify_is_woken_or_has_read() {
    let two = Two::over(MemoryLink::new()).await;

    two.meet_in_all_ways().await;
}
