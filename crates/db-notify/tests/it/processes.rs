//! Several processes on one database: how a map of watched topics handles their restarts, ends and silence.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use db_core::Config;
use db_notify::{Bus, BusOptions, Delivery, Topic, Watch, WatchOptions, WatchedTopics};
use db_testkit::{Proxy, TestDb, until};
use harness::{Process, answer, told};
use sqlx::postgres::PgListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Runs a child process on one thread, so that its memory is in one place.
pub(crate) fn run(what: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(what);
}

/// The timeout of an answer.
const LONGEST: Duration = Duration::from_mins(1);

/// A mark lasts for three times as long.
const RENEWAL: Duration = Duration::from_secs(1);

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

/// The deliveries of a watcher.
#[derive(Default)]
struct Seen {
    notifications: AtomicUsize,
    gaps: AtomicUsize,
}

async fn look(mut watch: Watch, seen: Arc<Seen>) {
    while let Some(delivery) = watch.recv().await {
        let count = match delivery {
            Delivery::Notification(_) => &seen.notifications,
            Delivery::Gap(_) => &seen.gaps,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs in a child process: one bus and one map, which carry out orders. The first order makes them.
#[test]
fn one_of_several() {
    let Some((address, mut orders)) = told() else { return };
    run(async {
        let begin = orders.recv().await.expect("an order");
        let first = begin.strip_prefix("begin ").expect("the first order");
        let config = Config::from_url(&address).expect("an address");
        let options = BusOptions::default().heartbeat(Duration::from_millis(200));
        let bus = Bus::open(&config, options).await.expect("a bus");
        let map = WatchedTopics::new(&bus, &topic("watched"), &WatchOptions::default().renewal(RENEWAL));
        let notify = |name: &str| {
            let is_sent = map.notify(&topic(name)).expect("an open bus");
            answer(if is_sent { "sent" } else { "gated" });
        };
        notify(first);
        let mut watches = HashMap::new();
        let mut tasks = JoinSet::new();
        while let Some(order) = orders.recv().await {
            match order.split_once(' ').expect("what, and of which topic") {
                ("watch", name) => {
                    let seen = Arc::<Seen>::default();
                    tasks.spawn(look(map.watch(&topic(name), 100), Arc::clone(&seen)));
                    watches.insert(name.to_owned(), seen);
                    answer("watching");
                }
                ("notify", name) => notify(name),
                // Sent after all that waits.
                ("flush", name) => {
                    bus.notify(&topic(name)).await.expect("sent");
                    answer("flushed");
                }
                ("trust", "") => {
                    until("the map is trusted", async || !map.state().in_doubt).await;
                    answer("trusted");
                }
                ("heard", name) => answer(&watches[name].notifications.load(Ordering::Relaxed).to_string()),
                ("gaps", name) => answer(&watches[name].gaps.load(Ordering::Relaxed).to_string()),
                ("connected", "") => answer(&bus.state().is_connected().to_string()),
                other => panic!("{other:?}"),
            }
        }
    });
}

/// Starts a process with a bus and a map, which sends everything at first.
async fn begin(address: &str, first: &str) -> Process {
    let mut process = Process::start("processes::one_of_several", address);
    assert_eq!(process.ask(&format!("begin {first}")).await, "sent", "it cannot know who watches");
    process
}

/// Starts a process that watches a topic.
async fn watcher(address: &str, name: &str) -> Process {
    let mut process = begin(address, "anything").await;
    process.ask(&format!("watch {name}")).await;
    process
}

/// Starts a process whose map knows all watches.
async fn writer(address: &str, first: &str) -> Process {
    let mut process = begin(address, first).await;
    process.ask("trust ").await;
    process
}

async fn number(process: &mut Process, order: &str) -> usize {
    process.ask(order).await.parse().expect("a number")
}

/// Makes the writer notify until the watcher receives it.
async fn until_heard(writer: &mut Process, watcher: &mut Process, name: &str) {
    let before = number(watcher, &format!("heard {name}")).await;
    until("the watcher hears of its topic", async || {
        writer.ask(&format!("notify {name}")).await;
        number(watcher, &format!("heard {name}")).await > before
    })
    .await;
}

/// Makes the writer notify until its map drops the notifications.
async fn until_gated(writer: &mut Process, name: &str) {
    until("nobody watches", async || writer.ask(&format!("notify {name}")).await == "gated").await;
}

/// Counts the notifications that pass the server, by a session of its own.
struct Server(PgListener);

impl Server {
    async fn of(db: &TestDb) -> Self {
        let mut listener = PgListener::connect_with(&db.pool()).await.expect("a session");
        listener.listen("db_notify.default").await.expect("it listens");
        Self(listener)
    }

    /// The number of notifications of the writer so far, and of the other processes meanwhile.
    async fn until_flushed(&mut self, writer: &mut Process) -> Vec<String> {
        writer.ask("flush the-end").await;
        let mut seen = Vec::new();
        loop {
            let heard = timeout(LONGEST, self.0.recv()).await.expect("in time").expect("a session");
            if heard.payload().contains("the-end") {
                return seen;
            }
            seen.push(heard.payload().to_owned());
        }
    }
}

/// Notifies an unwatched topic, and shows that the server receives nothing.
async fn costs_nothing(server: &mut Server, writer: &mut Process, name: &str) {
    server.until_flushed(writer).await;
    for _ in 0..100 {
        assert_eq!(writer.ask(&format!("notify {name}")).await, "gated");
    }
    let passed = server.until_flushed(writer).await;
    assert!(passed.iter().all(|payload| !payload.contains(name)), "{passed:?}");
}

#[db_testkit::test]
async fn a_restarted_writer_reaches_the_watchers_and_then_drops_the_rest(db: TestDb) {
    let mut server = Server::of(&db).await;
    let mut first = watcher(&db.url(), "topic-1").await;
    let mut second = watcher(&db.url(), "topic-2").await;
    let mut old = writer(&db.url(), "anything").await;
    until_heard(&mut old, &mut first, "topic-1").await;
    until_heard(&mut old, &mut second, "topic-2").await;
    costs_nothing(&mut server, &mut old, "topic-3").await;

    old.kill();
    let before = number(&mut first, "heard topic-1").await;
    let mut new = begin(&db.url(), "topic-1").await;

    // While in doubt, the map sends everything.
    until("the watcher hears the new writer's first", async || {
        number(&mut first, "heard topic-1").await > before
    })
    .await;
    // Then it sends what the renewals name.
    new.ask("trust ").await;
    until_heard(&mut new, &mut first, "topic-1").await;
    until_heard(&mut new, &mut second, "topic-2").await;
    costs_nothing(&mut server, &mut new, "topic-3").await;
}

#[db_testkit::test]
async fn the_marks_of_a_killed_process_expire_and_other_marks_do_not(db: TestDb) {
    let mut server = Server::of(&db).await;
    let mut killed = watcher(&db.url(), "topic-1").await;
    let mut lives = watcher(&db.url(), "topic-2").await;
    let mut writer = writer(&db.url(), "anything").await;
    until_heard(&mut writer, &mut killed, "topic-1").await;

    killed.kill();

    until_gated(&mut writer, "topic-1").await;
    costs_nothing(&mut server, &mut writer, "topic-1").await;
    until_heard(&mut writer, &mut lives, "topic-2").await;
}

#[db_testkit::test]
async fn a_watcher_in_a_black_hole_is_forgotten_and_gets_a_gap_when_it_is_back(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let mut server = Server::of(&db).await;
    let mut silent = watcher(&proxy.url(), "topic-1").await;
    let mut lives = watcher(&db.url(), "topic-2").await;
    let mut writer = writer(&db.url(), "anything").await;
    until_heard(&mut writer, &mut silent, "topic-1").await;
    assert_eq!(silent.ask("gaps topic-1").await, "0");

    proxy.black_hole();
    until_gated(&mut writer, "topic-1").await;
    costs_nothing(&mut server, &mut writer, "topic-1").await;
    until_heard(&mut writer, &mut lives, "topic-2").await;
    until("it notices", async || silent.ask("connected ").await == "false").await;
    assert_eq!(silent.ask("gaps topic-1").await, "0", "not before it can look without missing anything");
    proxy.heal();

    until("it is told to look again", async || silent.ask("gaps topic-1").await != "0").await;
    until_heard(&mut writer, &mut silent, "topic-1").await;
}
