//! Faults that repeat: they must cause neither loops without a pause nor waits without an end.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use db_core::{Config, ConnectFailure};
use db_notify::link::{Link, Listener, RawNotification};
use db_notify::{
    Bus, BusOptions, Channel, Delivery, GapReason, MemoryLink, MemoryListener, MemorySender, NotifyError,
    Subscription, Trouble, WatchOptions, WatchedTopics,
};
use db_testkit::{TestDb, TestServer, until};
use tokio::time::{sleep, timeout};

use crate::support::{PATIENCE, gap, next, topic};

/// A link whose listening sessions fail as the test says.
#[derive(Clone, Default)]
struct Moody {
    memory: MemoryLink,
    mood: Arc<Mood>,
}

#[derive(Default)]
struct Mood {
    /// Sessions open and listen, and the first heartbeat ends them.
    is_short_lived: AtomicBool,
    /// No session can be opened.
    is_shut: AtomicBool,
    opened: AtomicUsize,
}

impl std::fmt::Display for Moody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.memory.fmt(f)
    }
}

impl Link for Moody {
    type Listener = MoodyListener;
    type Sender = MemorySender;

    async fn listener(&self) -> Result<MoodyListener, sqlx::Error> {
        if self.mood.is_shut.load(Ordering::Relaxed) {
            return Err(sqlx::Error::Io(ErrorKind::ConnectionRefused.into()));
        }
        self.mood.opened.fetch_add(1, Ordering::Relaxed);
        Ok(MoodyListener { listener: self.memory.listener().await?, mood: Arc::clone(&self.mood) })
    }

    async fn sender(&self) -> Result<MemorySender, sqlx::Error> {
        self.memory.sender().await
    }

    fn explain(&self, error: &sqlx::Error) -> ConnectFailure {
        self.memory.explain(error)
    }
}

struct MoodyListener {
    listener: MemoryListener,
    mood: Arc<Mood>,
}

impl Listener for MoodyListener {
    async fn listen(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.listener.listen(channels).await
    }

    async fn unlisten(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.listener.unlisten(channels).await
    }

    async fn recv(&mut self) -> Result<RawNotification, sqlx::Error> {
        self.listener.recv().await
    }

    async fn ping(&mut self) -> Result<f64, sqlx::Error> {
        if self.mood.is_short_lived.load(Ordering::Relaxed) {
            return Err(sqlx::Error::Io(ErrorKind::ConnectionReset.into()));
        }
        self.listener.ping().await
    }

    async fn close(self) {
        self.listener.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_that_are_lost_at_once_are_opened_less_and_less_often() {
    let link = Moody::default();
    link.mood.is_short_lived.store(true, Ordering::Relaxed);
    let bus = Bus::with_link(link.clone(), BusOptions::default()).await.expect("a bus");
    let mut subscription = bus.subscribe(&topic("t"), 10);

    sleep(Duration::from_mins(1)).await;
    let opened = link.mood.opened.load(Ordering::Relaxed);
    assert!((10..=80).contains(&opened), "{opened} sessions in a minute");

    link.mood.is_short_lived.store(false, Ordering::Relaxed);
    assert_eq!(gap(&mut subscription).await, GapReason::Reconnected);
    sleep(Duration::from_mins(1)).await;
    assert!(link.mood.opened.load(Ordering::Relaxed) <= opened + 1, "it is well again");
    bus.notify(&topic("t")).await.expect("sent");
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_bus_that_is_aborted_while_the_server_is_away_get_an_error() {
    let memory = MemoryLink::new();
    let bus = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");
    let mut subscription = bus.subscribe(&topic("t"), 10);
    memory.stop();
    bus.notify_soon(&topic("first")).expect("accepted");
    until("it is being sent", async || bus.state().pending == 0).await;
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.notify(&topic("second")).await }
    });
    until("somebody waits", async || bus.state().pending == 1).await;

    assert!(!bus.close(Duration::from_millis(50)).await, "there was no time for it");

    let told = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic");
    assert_eq!(told, Err(NotifyError::Closed));
    let end = timeout(PATIENCE, async { while subscription.recv().await.is_some() {} }).await;
    assert!(end.is_ok(), "subscriptions end");
    assert!(!bus.state().is_connected());
}

#[tokio::test(start_paused = true)]
async fn callers_that_gave_up_take_no_memory_while_the_server_is_away() {
    let memory = MemoryLink::new();
    let bus = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");
    memory.stop();
    for _ in 0..100_000 {
        assert!(timeout(Duration::ZERO, bus.notify(&topic("t"))).await.is_err());
    }

    memory.start();
    timeout(PATIENCE, bus.notify(&topic("t"))).await.expect("in time").expect("sent");
    assert!(bus.state().coalesced >= 99_000, "{:?}", bus.state());
}

#[tokio::test(start_paused = true)]
async fn a_notification_dropped_before_a_long_loss_was_noticed_is_recovered_after_it() {
    let options = WatchOptions::default().renewal(Duration::from_secs(1));
    let link = Moody::default();
    let map = async |bus: &Bus| {
        let map = WatchedTopics::new(bus, &topic("watched"), &options);
        until("it trusts itself", async || !map.state().in_doubt).await;
        map
    };
    let writing = Bus::with_link(link.clone(), BusOptions::default()).await.expect("a bus");
    let writer = map(&writing).await;
    // Its session is lost silently. Sessions that are made afterwards work.
    link.memory.black_hole();
    let watching = Bus::with_link(link.memory.clone(), BusOptions::default()).await.expect("a bus");
    let watcher = map(&watching).await;
    let mut watch = watcher.watch(&topic("t"), 10);
    assert_eq!(writer.notify(&topic("t")), Ok(false), "the announcement does not arrive");

    // Longer than the map remembers dropped notifications.
    link.mood.is_shut.store(true, Ordering::Relaxed);
    sleep(Duration::from_mins(10)).await;
    link.mood.is_shut.store(false, Ordering::Relaxed);

    let delivery = timeout(PATIENCE, watch.recv()).await.expect("in time");
    assert!(matches!(delivery, Some(Delivery::Notification(_))), "{delivery:?}");
}

#[tokio::test]
async fn a_map_on_a_lazy_bus_can_be_used_outside_of_a_runtime() {
    let bus = Bus::lazy_with_link(MemoryLink::new(), &BusOptions::default()).expect("a bus");
    let map = WatchedTopics::new(&bus, &topic("watched"), &WatchOptions::default());

    let used = std::thread::spawn(move || map.notify(&topic("t")).map(|sent| (sent, map)));
    let (sent, map) = used.join().expect("no panic outside of a runtime").expect("accepted");

    assert!(sent, "it is in doubt");
    until("it listens", async || bus.state().is_connected()).await;
    drop(map);
}

#[db_testkit::test]
async fn a_server_that_does_not_tell_its_queue_usage_is_no_trouble(db: TestDb) {
    // In turn, the function fails, and is cancelled.
    let fake = "create schema fake;
        create sequence fake.calls;
        create function fake.pg_notification_queue_usage() returns float8 language plpgsql as $$
        begin
            if nextval('fake.calls') % 2 = 0 then
                raise query_canceled;
            end if;
            raise exception 'not for you';
        end $$;";
    sqlx::raw_sql(fake).execute(&db.pool()).await.expect("made");
    let path = format!("alter database {} set search_path = fake, pg_catalog, public", db.name());
    sqlx::raw_sql(sqlx::AssertSqlSafe(path)).execute(&db.pool()).await.expect("set");
    let options = BusOptions::default().heartbeat(Duration::from_millis(20));
    let config = Config::from_url(&db.url()).expect("an address");
    let bus = Bus::open(&config, options).await.expect("a bus");

    for _ in 0..3 {
        let last = bus.state().last_heartbeat;
        until("another heartbeat", async || bus.state().last_heartbeat != last).await;
    }

    let state = bus.state();
    assert_eq!((state.gaps, state.queue_usage, state.trouble), (0, None, None::<Trouble>));
}

async fn until_notified(subscription: &mut Subscription) {
    while !matches!(next(subscription).await, Delivery::Notification(_)) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_the_database_cannot_hold_costs_the_others_no_more_than_a_gap() {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let name = format!("{}_latin1", db.name());
    let make =
        format!("create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&db.pool()).await.expect("made");
    let mut url = db.url();
    url = url.replace(db.name(), &name);
    let config = Config::from_url(&url).expect("an address");
    let (one, other) = (
        Bus::open(&config, BusOptions::default()).await.expect("a bus"),
        Bus::open(&config, BusOptions::default()).await.expect("a bus"),
    );
    let map = WatchedTopics::new(&one, &topic("watched"), &WatchOptions::default());
    let mut heard = other.subscribe(&topic("t"), 1000);

    let _watch = map.watch(&topic("🦀"), 1);
    assert_eq!(gap(&mut heard).await, GapReason::Overflow);

    // Later notifications arrive, and the refused one is not repeated.
    let mut arrives = async || {
        one.notify(&topic("t")).await.expect("sent");
        until_notified(&mut heard).await;
    };
    arrives().await;
    let gaps = other.state().gaps;
    for _ in 0..50 {
        arrives().await;
    }
    assert_eq!(other.state().gaps, gaps);
    for bus in [&one, &other] {
        assert!(bus.close(PATIENCE).await);
    }
    let remove = format!("drop database {name} with (force)");
    sqlx::raw_sql(sqlx::AssertSqlSafe(remove)).execute(&db.pool()).await.expect("removed");
}
