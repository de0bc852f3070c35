//! What a map of watched topics sends, what it drops, and when it is in doubt, in paused time.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use db_core::{Config, ConnectFailure, Pool, PoolOptions};
use db_notify::link::{Link, Sender};
use db_notify::{
    Bus, BusOptions, Channel, Delivery, Gap, GapReason, MemoryLink, MemoryListener, MemorySender,
    NotifyError, Subscription, Topic, Watch, WatchOptions, WatchedTopics,
};
use db_testkit::TestDb;
use futures_util::{FutureExt, StreamExt};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

/// The default interval.
const RENEWAL: Duration = Duration::from_secs(30);

/// The limit of each wait. In paused time it passes at once.
const PATIENCE: Duration = Duration::from_hours(1);

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

fn map_on(bus: &Bus, announcements: &str) -> WatchedTopics {
    WatchedTopics::new(bus, &topic(announcements), &WatchOptions::default().renewal(RENEWAL))
}

/// The bus and the map of a process.
struct Process {
    bus: Bus,
    map: WatchedTopics,
}

impl Process {
    async fn on<L: Link>(link: L) -> Self {
        let bus = Bus::with_link(link, BusOptions::default()).await.expect("a bus");
        let map = map_on(&bus, "watched");
        Self { bus, map }
    }

    fn notify(&self, name: &str) -> bool {
        self.map.notify(&topic(name)).expect("an open bus")
    }

    /// A process whose map is not in doubt.
    async fn trusting<L: Link>(link: L) -> Self {
        let process = Self::on(link).await;
        eventually("the map is trusted", || !process.map.state().in_doubt).await;
        process
    }

    async fn knows(&self, name: &str, is_watched: bool) {
        eventually("it is known who watches", || self.map.is_watched(&topic(name)) == is_watched).await;
    }
}

/// Paused time advances only when all tasks are idle, so no state is missed.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

async fn next(watch: &mut Watch) -> Delivery {
    timeout(PATIENCE, watch.recv()).await.expect("a delivery in time").expect("an open bus")
}

async fn is_notified(watch: &mut Watch) {
    let delivery = next(watch).await;
    assert!(matches!(delivery, Delivery::Notification(_)), "{delivery:?}");
}

/// Sends the message "everything".
async fn send_everything(memory: &MemoryLink) {
    let mut sender = memory.sender().await.expect("a session");
    let channel = Channel::new("db_notify.default").expect("a channel");
    sender.notify(&channel, &["1*".to_owned()]).await.expect("sent");
}

#[tokio::test(start_paused = true)]
async fn unwatched_topics_are_counted_and_not_sent() {
    let memory = MemoryLink::new();
    let (watcher, writer) = (Process::on(memory.clone()).await, Process::trusting(memory).await);
    let mut watch = watcher.map.watch(&topic("t"), 10);
    writer.knows("t", true).await;
    let sent = writer.bus.state().sent;

    for _ in 0..3 {
        assert!(!writer.notify("unwatched"));
    }
    assert!(writer.notify("t"));

    is_notified(&mut watch).await;
    eventually("it was sent", || writer.bus.state().sent > sent).await;
    let (state, bus) = (writer.map.state(), writer.bus.state());
    assert_eq!((state.gated, bus.gated, bus.sent - sent), (3, 3, 1));
    assert_eq!((state.here, state.elsewhere, state.recovered), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_map_sends_everything_until_the_watchers_have_renewed() {
    let memory = MemoryLink::new();
    let watcher = Process::on(memory.clone()).await;
    let mut watch = watcher.map.watch(&topic("t"), 10);
    eventually("it is announced", || watcher.bus.state().sent == 1).await;

    let writer = Process::on(memory).await;

    assert!(writer.map.state().in_doubt && !writer.map.is_watched(&topic("t")));
    assert!(writer.notify("t") && writer.notify("unwatched"));
    is_notified(&mut watch).await;
    eventually("the map is trusted", || !writer.map.state().in_doubt).await;
    assert!(writer.map.is_watched(&topic("t")), "it was said again meanwhile");
    assert!(writer.notify("t") && !writer.notify("unwatched"));
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_the_same_process_is_known_at_once() {
    let process = Process::trusting(MemoryLink::new()).await;
    assert!(!process.notify("t"));

    let mut watch = process.map.watch(&topic("t"), 10);

    assert!(process.notify("t"));
    is_notified(&mut watch).await;
    drop(watch);
    assert!(!process.notify("t"));
}

#[tokio::test(start_paused = true)]
async fn a_mark_lasts_as_long_as_it_is_renewed() {
    let memory = MemoryLink::new();
    let (watcher, writer) = (Process::on(memory.clone()).await, Process::trusting(memory).await);
    let _watch = watcher.map.watch(&topic("t"), 10);
    writer.knows("t", true).await;

    for _ in 0..1000 {
        sleep(RENEWAL / 10).await;
        assert!(writer.map.is_watched(&topic("t")));
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_watch_withdraws_the_mark() {
    let memory = MemoryLink::new();
    let (watcher, writer) = (Process::on(memory.clone()).await, Process::trusting(memory).await);
    let [first, last] = [watcher.map.watch(&topic("t"), 10), watcher.map.watch(&topic("t"), 10)];
    writer.knows("t", true).await;

    drop(first);
    sleep(RENEWAL * 2).await;
    assert!(writer.map.is_watched(&topic("t")), "one is left");
    drop(last);

    let begun = Instant::now();
    writer.knows("t", false).await;
    assert!(begun.elapsed() < RENEWAL / 2, "it did not expire");
    assert!(!writer.notify("t"));
}

/// A memory link whose sessions receive, and cannot send while it is muted.
#[derive(Clone)]
struct Mutable {
    memory: MemoryLink,
    is_muted: Arc<AtomicBool>,
}

impl Mutable {
    fn of(memory: &MemoryLink) -> Self {
        Self { memory: memory.clone(), is_muted: Arc::default() }
    }

    fn mute(&self, is_muted: bool) {
        self.is_muted.store(is_muted, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Mutable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.memory.fmt(f)
    }
}

impl Link for Mutable {
    type Listener = MemoryListener;
    type Sender = MutableSender;

    async fn listener(&self) -> Result<MemoryListener, sqlx::Error> {
        self.memory.listener().await
    }

    async fn sender(&self) -> Result<MutableSender, sqlx::Error> {
        Ok(MutableSender { sender: self.memory.sender().await?, is_muted: Arc::clone(&self.is_muted) })
    }

    fn explain(&self, error: &sqlx::Error) -> ConnectFailure {
        self.memory.explain(error)
    }
}

struct MutableSender {
    sender: MemorySender,
    is_muted: Arc<AtomicBool>,
}

impl Sender for MutableSender {
    async fn notify(&mut self, channel: &Channel, payloads: &[String]) -> Result<(), sqlx::Error> {
        if self.is_muted.load(Ordering::Relaxed) {
            return Err(sqlx::Error::Io(ErrorKind::BrokenPipe.into()));
        }
        self.sender.notify(channel, payloads).await
    }

    async fn close(self) {
        self.sender.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_marks_of_a_muted_process_expire_after_three_renewals() {
    let memory = MemoryLink::new();
    let link = Mutable::of(&memory);
    let (watcher, writer) = (Process::on(link.clone()).await, Process::trusting(memory).await);
    let _watch = watcher.map.watch(&topic("t"), 10);
    writer.knows("t", true).await;

    link.mute(true);

    // The last renewal is at most one interval old.
    sleep(RENEWAL.mul_f64(1.9)).await;
    assert!(writer.map.is_watched(&topic("t")));
    sleep(RENEWAL.mul_f64(1.2)).await;
    assert!(!writer.map.is_watched(&topic("t")));
    assert!(!writer.notify("t"));
    assert_eq!(writer.map.state().elsewhere, 0);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_is_announced_late_receives_a_gap() {
    let memory = MemoryLink::new();
    let link = Mutable::of(&memory);
    let (watcher, writer) = (Process::on(link.clone()).await, Process::trusting(memory).await);
    let mut old = watcher.map.watch(&topic("old"), 10);
    writer.knows("old", true).await;
    link.mute(true);
    let mut new = watcher.map.watch(&topic("new"), 10);

    // Longer than a mark lasts, and longer than a dropped notification is remembered.
    assert!(!writer.notify("new"));
    sleep(RENEWAL * 4).await;
    assert!(!writer.notify("old"));
    sleep(RENEWAL * 4).await;
    assert_eq!((old.next().now_or_never(), new.next().now_or_never()), (None, None));
    link.mute(false);

    for watch in [&mut old, &mut new] {
        let unannounced = Gap { reason: GapReason::Unannounced, missed: None };
        assert_eq!(next(watch).await, Delivery::Gap(unannounced));
    }
    writer.knows("old", true).await;
    writer.knows("new", true).await;
    for watch in [&mut old, &mut new] {
        sleep(RENEWAL * 4).await;
        assert_eq!(watch.next().now_or_never(), None, "it is told once");
        assert!(writer.notify(watch.topic().as_str()));
        is_notified(watch).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_silence_of_the_sender_is_no_gap() {
    let memory = MemoryLink::new();
    let link = Mutable::of(&memory);
    let (watcher, writer) = (Process::on(link.clone()).await, Process::trusting(memory).await);
    link.mute(true);
    let mut watch = watcher.map.watch(&topic("t"), 10);
    assert!(!writer.notify("t"));
    sleep(RENEWAL).await;

    link.mute(false);

    // The dropped notification is remembered.
    is_notified(&mut watch).await;
    writer.knows("t", true).await;
    assert_eq!(watch.next().now_or_never(), None);
    assert_eq!((writer.map.state().recovered, watcher.bus.state().gaps), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_link_a_map_is_in_doubt_for_two_renewals() {
    let memory = MemoryLink::new();
    let writer = Process::trusting(memory.clone()).await;
    assert!(!writer.notify("t"));

    memory.stop();
    eventually("it is noticed", || !writer.bus.state().is_connected()).await;
    assert!(writer.map.state().in_doubt && writer.notify("t"), "nobody can be heard");
    sleep(RENEWAL * 10).await;
    assert!(writer.map.state().in_doubt && writer.notify("t"), "however long it lasts");
    memory.start();
    eventually("it is back", || writer.bus.state().is_connected()).await;
    yield_now().await;

    sleep(RENEWAL.mul_f64(1.9)).await;
    assert!(writer.map.state().in_doubt && writer.notify("t"));
    sleep(RENEWAL.mul_f64(0.2)).await;
    assert!(!writer.map.state().in_doubt && !writer.notify("t"));
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_recently_dropped_notifications_are_recovered_and_older_ones_are_not() {
    let memory = MemoryLink::new();
    let writer = Process::trusting(memory.clone()).await;
    let other = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");
    let names = ["a", "b", "c", "long ago"].map(topic);
    let mut heard = other.subscribe_all(&names, 10);
    assert!(!writer.notify("long ago"));
    sleep(RENEWAL * 3).await;
    for name in ["a", "b", "c", "a"] {
        assert!(!writer.notify(name));
    }

    send_everything(&memory).await;

    let overflow = Delivery::Gap(Gap { reason: GapReason::Overflow, missed: None });
    assert_eq!(deliver(&mut heard).await, overflow);
    let mut brought = Vec::new();
    for _ in 0..3 {
        brought.push(deliver(&mut heard).await);
    }
    assert!(
        names[..3].iter().all(|name| brought.iter().any(|delivery| is_of(delivery, name))),
        "{brought:?}"
    );
    assert_eq!((writer.map.state().recovered, writer.map.state().gated), (3, 5));
    assert!(writer.map.state().in_doubt);
    sleep(RENEWAL).await;
    assert_eq!(heard.recv().now_or_never(), None, "each once");
}

async fn deliver(subscription: &mut Subscription) -> Delivery {
    timeout(PATIENCE, subscription.recv()).await.expect("a delivery in time").expect("an open bus")
}

fn is_of(delivery: &Delivery, topic: &Topic) -> bool {
    matches!(delivery, Delivery::Notification(notification) if notification.topic() == Some(topic))
}

#[tokio::test(start_paused = true)]
async fn an_announcement_of_an_unknown_form_puts_the_map_in_doubt() {
    let memory = MemoryLink::new();
    let writer = Process::trusting(memory.clone()).await;
    let other = Bus::with_link(memory, BusOptions::default()).await.expect("a bus");
    let mut heard = other.subscribe(&topic("t"), 10);
    assert!(!writer.notify("t"));

    other.notify_with(&topic("watched"), "=of a later version").await.expect("sent");

    assert!(is_of(&deliver(&mut heard).await, &topic("t")), "it may have been about this one");
    assert!(writer.map.state().in_doubt && writer.notify("anything"));
    assert_eq!(writer.bus.state().gaps, 0, "nobody else is bothered");
}

#[tokio::test(start_paused = true)]
async fn maps_with_different_topics_for_announcements_are_separate() {
    let memory = MemoryLink::new();
    let (watcher, writer) = (Process::on(memory.clone()).await, Process::trusting(memory).await);
    let (orders, others) = (map_on(&watcher.bus, "orders/watched"), map_on(&writer.bus, "orders/watched"));
    eventually("the map is trusted", || !others.state().in_doubt).await;

    let mut watch = orders.watch(&topic("t"), 10);

    eventually("it is known", || others.is_watched(&topic("t"))).await;
    sleep(RENEWAL * 2).await;
    assert!(!writer.map.is_watched(&topic("t")) && !writer.notify("t"));
    assert_eq!(watch.next().now_or_never(), None);
    assert!(others.notify(&topic("t")).expect("an open bus"));
    is_notified(&mut watch).await;
}

#[tokio::test(start_paused = true)]
async fn very_many_watches_are_announced_in_few_notifications() {
    const MANY: usize = 20_000;
    let memory = MemoryLink::new();
    let (watcher, writer) = (Process::on(memory.clone()).await, Process::trusting(memory).await);
    // More than the queues of both buses hold.
    let all: Vec<Watch> = (0..MANY).map(|n| watcher.map.watch(&topic(&format!("orders/{n}")), 1)).collect();

    eventually("they are known", || writer.map.state().elsewhere == MANY).await;
    sleep(RENEWAL * 10).await;
    assert_eq!((watcher.map.state().here, writer.map.state().elsewhere), (MANY, MANY));
    let said = watcher.bus.state().sent;
    drop(all);
    eventually("they are withdrawn", || writer.map.state().elsewhere == 0).await;

    // About 40 notifications for each of 12 announcements.
    assert!(said < 1000, "{said}");
    assert_eq!((watcher.bus.state().gaps, writer.bus.state().gaps, watcher.bus.state().coalesced), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_quick_changes_the_last_state_of_a_watch_is_known() {
    let memory = MemoryLink::new();
    let (watcher, writer) = (Process::on(memory.clone()).await, Process::trusting(memory).await);
    for turns in 0..20 {
        let (kept, given_up) = (format!("kept/{turns}"), format!("given-up/{turns}"));
        let turn = async || {
            for _ in 0..turns {
                yield_now().await;
            }
        };

        let first = watcher.map.watch(&topic(&kept), 1);
        turn().await;
        drop(first);
        let left = watcher.map.watch(&topic(&given_up), 1);
        turn().await;
        let mut last = watcher.map.watch(&topic(&kept), 1);
        drop(left);

        writer.knows(&kept, true).await;
        writer.knows(&given_up, false).await;
        sleep(RENEWAL * 4).await;
        assert!(writer.notify(&kept) && !writer.notify(&given_up), "{turns}");
        is_notified(&mut last).await;
    }
}

/// The number of tasks besides the test itself.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn closing_the_bus_ends_watches_and_the_task_of_the_map() {
    let process = Process::trusting(MemoryLink::new()).await;
    let mut watch = process.map.watch(&topic("t"), 10);
    assert_eq!(tasks(), 3, "two of the bus, one of the map");

    assert!(process.bus.close(PATIENCE).await, "in time");

    assert_eq!(watch.recv().await, None);
    eventually("all tasks have ended", || tasks() == 0).await;
    assert_eq!(process.map.notify(&topic("t")), Err(NotifyError::Closed));
    assert_eq!(process.map.watch(&topic("t"), 1).recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_map_and_its_bus_live_as_long_as_a_watch() {
    let Process { bus, map } = Process::trusting(MemoryLink::new()).await;
    let watch = map.watch(&topic("t"), 10);
    drop((bus, map));
    yield_now().await;
    assert_eq!(tasks(), 3);

    drop(watch);

    eventually("all tasks have ended", || tasks() == 0).await;
}

#[db_testkit::test]
async fn notify_after_notifies_only_after_a_commit(db: TestDb) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let options = PoolOptions::api().name("test").max(2);
    let pool = Pool::new(&config, options);
    let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
    let map = map_on(&bus, "watched");
    let mut undone = map.watch(&topic("undone"), 10);
    let mut done = map.watch(&topic("done"), 10);

    let mut tx = pool.handle().begin().await.expect("begun");
    map.notify_after(&mut tx, &topic("undone"));
    tx.rollback().await.expect("rolled back");
    let mut tx = pool.handle().begin().await.expect("begun");
    map.notify_after(&mut tx, &topic("done"));
    // A marker, to see what was sent before the commit.
    bus.notify_with(&topic("done"), "before the commit").await.expect("sent");
    let first = next(&mut done).await;
    tx.commit().await.expect("committed");

    assert!(matches!(&first, Delivery::Notification(it) if it.payload() == "before the commit"), "{first:?}");
    let second = next(&mut done).await;
    assert!(matches!(&second, Delivery::Notification(it) if it.payload().is_empty()), "{second:?}");
    assert_eq!(undone.next().now_or_never(), None);
}
