//! 200 faults, one after the other, under load.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use db_core::Config;
use db_notify::{Bus, BusOptions, Delivery, GapReason, Subscription, Topic};
use db_testkit::{Proxy, Stop, TestDb, TestServer, until};
use harness::{Process, answer, told};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::processes::run;

const FAULTS: usize = 200;

/// After this number of faults, each kind has occurred, and the memory of the process has its final size.
const WARM: usize = 20;

const HEARTBEAT: Duration = Duration::from_millis(200);

/// Shorter than the default of 2 s, for which each silent fault would wait; long enough for a busy machine.
const ANSWER: Duration = Duration::from_millis(500);

/// The timeout of an attempt to connect, when the address has none.
const DIAL: Duration = Duration::from_secs(5);

/// A wait of this length has failed. A shorter bound would measure the machine.
const DEADLINE: Duration = HEARTBEAT.saturating_add(ANSWER).saturating_add(DIAL).saturating_mul(4);

const TOPICS: usize = 10;

fn options() -> BusOptions {
    BusOptions::default().heartbeat(HEARTBEAT).answer(ANSWER)
}

/// The topics that the other process notifies, and that the process of the bus notifies.
fn topics(by: &str) -> impl Iterator<Item = Topic> {
    (0..TOPICS).map(move |n| Topic::new(format!("{by}/{n}")).expect("a topic"))
}

/// Notifies all the time. Equal notifications wait once, so a long fault does not fill the outbox.
async fn write(bus: Bus, by: &'static str) {
    let topics: Vec<Topic> = topics(by).collect();
    loop {
        for topic in &topics {
            bus.notify_soon(topic).expect("an open bus");
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// The deliveries of a subscriber.
#[derive(Default)]
struct Seen {
    gaps: AtomicU64,
    /// The number of gaps before the last notification.
    alive: AtomicU64,
}

async fn follow(mut subscription: Subscription, seen: Arc<Seen>) {
    while let Some(delivery) = subscription.recv().await {
        match delivery {
            Delivery::Gap(gap) => {
                // On a machine that paused, the queue may also have been full.
                assert!(matches!(gap.reason, GapReason::Reconnected | GapReason::Lagged), "{gap}");
                seen.gaps.fetch_add(1, Ordering::Relaxed);
            }
            Delivery::Notification(_) => {
                seen.alive.store(seen.gaps.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }
}

/// Runs in a process of its own, which has one bus and nothing else.
#[test]
fn a_bus_alone() {
    let Some((address, mut orders)) = told() else { return };
    run(async {
        let config = Config::from_url(&address).expect("an address");
        // The runtime has sockets for signals, if a crate of the same build switches on that feature of tokio.
        let others = sockets();
        let bus = Bus::open(&config, options()).await.expect("a bus");
        let mut tasks = JoinSet::new();
        let mut all = Vec::new();
        for topic in topics("other").chain(topics("own")) {
            for _ in 0..2 {
                let seen = Arc::<Seen>::default();
                tasks.spawn(follow(bus.subscribe(&topic, 1000), Arc::clone(&seen)));
                all.push(seen);
            }
        }
        tasks.spawn(write(bus.clone(), "own"));
        let mut before = Vec::new();
        while let Some(order) = orders.recv().await {
            match order.as_str() {
                "arm" => {
                    before = all.iter().map(|seen| seen.gaps.load(Ordering::Relaxed)).collect();
                    answer("armed");
                }
                "lost" => {
                    until("the link is known to be lost", async || !bus.state().is_connected()).await;
                    answer("lost");
                }
                "recover" => {
                    let recovered = timeout(DEADLINE, async {
                        let is_well = |seen: &Seen, before| seen.alive.load(Ordering::Relaxed) > before;
                        while !all.iter().zip(&before).all(|(seen, before)| is_well(seen, *before)) {
                            sleep(Duration::from_millis(1)).await;
                        }
                    });
                    let is_in_time = recovered.await.is_ok();
                    let seen: Vec<_> = all.iter().map(|seen| (&seen.gaps, &seen.alive)).collect();
                    assert!(is_in_time, "{:?}, and gaps were {before:?}, are {seen:?}", bus.state());
                    answer("recovered");
                }
                // The two sessions of the bus.
                "clear" => {
                    until("nothing of the lost sessions is left", async || sockets() <= others + 2).await;
                    answer("cleared");
                }
                "memory" => answer(&resident().to_string()),
                other => panic!("{other}"),
            }
            if let Some(ended) = tasks.try_join_next() {
                ended.expect("a task that ends has panicked");
            }
        }
    });
}

/// Open sockets of this process.
fn sockets() -> usize {
    let links = fs::read_dir("/proc/self/fd").expect("the process's files").flatten();
    links
        .filter(|link| fs::read_link(link.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .count()
}

/// Pages that this process has in memory.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("the process's memory");
    text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages that are resident")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Fault {
    /// The server ends the listening session.
    Kill,
    /// The server ends both sessions.
    KillBoth,
    /// The network sends RST.
    Reset,
    /// The next session is lost as well, before it listens.
    Twice,
    /// The network passes nothing, old or new, without an error, until the bus notices.
    BlackHole,
    /// The open connections pass nothing for a while.
    Freeze,
    /// The network forgets the open connections.
    HalfOpen,
    /// All sessions end, and the server recovers.
    Crash,
    /// The server stops, and starts.
    Restart,
}

impl Fault {
    /// The mix of faults depends on their time: a silent one takes a heartbeat and an answer, a restart some seconds.
    fn of(number: usize) -> Self {
        match number % 25 {
            2 => Self::BlackHole,
            6 => Self::Freeze,
            10 => Self::HalfOpen,
            14 => Self::Twice,
            18 if number % 75 == 18 => Self::Restart,
            18 => Self::Crash,
            rest => [Self::Kill, Self::Reset, Self::KillBoth][rest % 3],
        }
    }
}

struct Place {
    server: TestServer,
    db: TestDb,
    proxy: Proxy,
}

impl Place {
    async fn listening_sessions(&self) -> Vec<i32> {
        let sql = "select pid from pg_stat_activity where datname = current_database() and application_name = 'bus'";
        sqlx::query_scalar(sql).fetch_all(&self.db.pool()).await.expect("sessions")
    }

    async fn terminate(&self, names: &[&str]) {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and application_name = any($1)";
        let killed: Vec<bool> =
            sqlx::query_scalar(sql).bind(names).fetch_all(&self.db.pool()).await.expect("killed");
        assert!(!killed.is_empty(), "nobody was called {names:?}");
    }

    /// Returns the time from which the bus can recover, once it has noticed the fault.
    async fn inflict(&self, fault: Fault, process: &mut Process) -> Instant {
        let mut since = Instant::now();
        match fault {
            Fault::Kill => self.terminate(&["bus"]).await,
            Fault::KillBoth => self.terminate(&["bus", "notifier"]).await,
            Fault::Reset => self.proxy.reset(),
            Fault::Twice => {
                self.proxy.cut_answer_to("LISTEN");
                self.terminate(&["bus"]).await;
            }
            Fault::Freeze => self.proxy.freeze_open(),
            Fault::HalfOpen => self.proxy.half_open(),
            Fault::BlackHole => {
                self.proxy.black_hole();
                process.ask("lost").await;
                since = Instant::now();
                self.proxy.heal();
            }
            Fault::Crash => {
                let pid = self.listening_sessions().await[0];
                self.server.kill_backend(pid).await.expect("killed");
                self.server.until_up().await.expect("recovered");
                since = Instant::now();
            }
            Fault::Restart => {
                self.server.restart(Stop::Fast).await.expect("restarted");
                since = Instant::now();
            }
        }
        since
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_each_of_200_faults_every_subscriber_is_told_and_hears_again() {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let proxy = Proxy::start(&db).expect("a proxy");
    let place = Place { server, db, proxy };
    let config = Config::from_url(&place.db.url()).expect("an address");
    let other = Bus::open(&config, options()).await.expect("a bus");
    let mut writing = JoinSet::new();
    writing.spawn(write(other, "other"));
    let mut process = Process::start("faults::a_bus_alone", &place.proxy.url());

    let mut delays: Vec<(Fault, Duration)> = Vec::new();
    let mut memory = Vec::new();
    for number in 0..FAULTS {
        let fault = Fault::of(number);
        process.ask("arm").await;
        let since = place.inflict(fault, &mut process).await;
        process.ask("recover").await;
        delays.push((fault, since.elapsed()));
        // Checked before the next fault, which might end what this one has left.
        process.ask("clear").await;
        if [WARM, FAULTS].contains(&(number + 1)) {
            memory.push(process.ask("memory").await.parse::<u64>().expect("pages"));
        }
    }
    writing.shutdown().await;

    report(&delays, &memory);
    assert!(memory[1] * 10 <= memory[0] * 11, "pages after {WARM} and after {FAULTS} faults: {memory:?}");
}

#[db_testkit::test]
async fn a_silently_lost_session_is_not_kept_open(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let bus = Bus::open(&config, options()).await.expect("a bus");
    let mut subscription = bus.subscribe(&topics("t").next().expect("a topic"), 10);

    // The peer would never answer a graceful close.
    proxy.half_open();
    let delivery = timeout(DEADLINE, subscription.recv()).await.expect("in time");

    assert!(matches!(delivery, Some(Delivery::Gap(_))), "{delivery:?}");
    until("only the new sessions are open", async || proxy.open_connections() <= 2).await;
}

/// Shown with `--nocapture`.
fn report(delays: &[(Fault, Duration)], memory: &[u64]) {
    let mut kinds: Vec<Fault> = delays.iter().map(|(fault, _)| *fault).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let say = |name: &str, mut times: Vec<Duration>| {
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{name:>10}: {:3} times, median {median:9.2?}, worst {worst:9.2?}", times.len());
    };
    for kind in kinds {
        let of_kind = delays.iter().filter(|(fault, _)| *fault == kind);
        say(&format!("{kind:?}"), of_kind.map(|(_, delay)| *delay).collect());
    }
    say("all", delays.iter().map(|(_, delay)| *delay).collect());
    println!("pages in memory after {WARM} and {FAULTS} faults: {memory:?}");
}
