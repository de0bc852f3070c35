//! Several processes on one database: what happens to them, and what a watched-topic map makes of it.

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

/// Runs what such a process does. In one thread, so that its memory is in one place.
pub(crate) fn run(what: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(what);
}

/// No answer takes longer than this.
const LONGEST: Duration = Duration::from_mins(1);

/// A mark is good for three times as long.
const RENEWAL: Duration = Duration::from_secs(1);

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

/// What a watcher has received.
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

/// In a process of its own: one bus and one map, which do what they are told. The first order has them begin.
#[test]
fn one_of_several() {
    let Some((address, mut orders)) = told() else { return };
    run(async {
        let begin = orders.recv().await.expect("an order");
        let first = begin.strip_prefix("begin ").expect("the first order");
        let config = Config::from_url(&address).expect("an address");
        let options = BusOptions { heartbeat: Duration::from_millis(200), ..BusOptions::default() };
        let bus = Bus::open(&config, options).await.expect("a bus");
        let map = WatchedTopics::new(&bus, &topic("watched"), &WatchOptions { renewal: RENEWAL });
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
                // After all that waits.
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

/// A process with a bus and a map. It lets everything through at first.
async fn begin(address: &str, first: &str) -> Process {
    let mut process = Process::start("processes::one_of_several", address);
    assert_eq!(process.ask(&format!("begin {first}")).await, "sent", "it cannot know who watches");
    process
}

/// One that watches a topic.
async fn watcher(address: &str, name: &str) -> Process {
    let mut process = begin(address, "anything").await;
    process.ask(&format!("watch {name}")).await;
    process
}

/// One that knows who watches.
async fn writer(address: &str, first: &str) -> Process {
    let mut process = begin(address, first).await;
    process.ask("trust ").await;
    process
}

async fn number(process: &mut Process, order: &str) -> usize {
    process.ask(order).await.parse().expect("a number")
}

/// Has the writer notify until the watcher hears it.
async fn until_heard(writer: &mut Process, watcher: &mut Process, name: &str) {
    let before = number(watcher, &format!("heard {name}")).await;
    until("the watcher hears of its topic", async || {
        writer.ask(&format!("notify {name}")).await;
        number(watcher, &format!("heard {name}")).await > before
    })
    .await;
}

/// Has the writer notify until nothing is sent any more.
async fn until_gated(writer: &mut Process, name: &str) {
    until("nobody watches", async || writer.ask(&format!("notify {name}")).await == "gated").await;
}

/// What passes the server, by a session of its own.
struct Server(PgListener);

impl Server {
    async fn of(db: &TestDb) -> Self {
        let mut listener = PgListener::connect_with(&db.pool()).await.expect("a session");
        listener.listen("db_notify.default").await.expect("it listens");
        Self(listener)
    }

    /// What the writer has sent until now, and the others meanwhile.
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

/// Notifies of a topic that nobody watches, and shows that the server has none of it.
async fn costs_nothing(server: &mut Server, writer: &mut Process, name: &str) {
    server.until_flushed(writer).await;
    for _ in 0..100 {
        assert_eq!(writer.ask(&format!("notify {name}")).await, "gated");
    }
    let passed = server.until_flushed(writer).await;
    assert!(passed.iter().all(|payload| !payload.contains(name)), "{passed:?}");
}

#[db_testkit::test]
async fn a_writer_that_is_restarted_reaches_those_who_watch_and_costs_nothing_else(db: TestDb) {
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

    // While it is in doubt, it sends whatever it is told to.
    until("the watcher hears the new writer's first", async || {
        number(&mut first, "heard topic-1").await > before
    })
    .await;
    // And then what those who watch have said again.
    new.ask("trust ").await;
    until_heard(&mut new, &mut first, "topic-1").await;
    until_heard(&mut new, &mut second, "topic-2").await;
    costs_nothing(&mut server, &mut new, "topic-3").await;
}

#[db_testkit::test]
async fn the_marks_of_a_killed_process_expire_and_those_of_others_do_not(db: TestDb) {
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
async fn a_watcher_in_a_black_hole_is_forgotten_told_to_look_again_and_watched_for_again(db: TestDb) {
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
