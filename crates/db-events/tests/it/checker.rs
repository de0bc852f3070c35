//! Writers, watchers and faults in several processes, and the facts that must hold in every case.
//!
//! `cargo test` runs it for some 20 s. `CHECKER_SECONDS=180 cargo test -p db-events --test it -- --nocapture checker` runs it
//! for three minutes, and prints what it has done.

mod brief;
mod child;
mod judge;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use db_core::{Config, Pool, PoolOptions};
use db_events::{EventLogs, LogId, NewEvent};
use db_notify::{Bus, BusOptions};
use db_testkit::{Proxy, Stop, TestDb, TestServer};
use harness::{Process, told};
use tokio::time::timeout;

use crate::support::{PATIENCE, run};
use brief::Briefs;
use child::Child;
use judge::{Judge, Memory, kind};

/// The environment variable with the time of a long run.
const SECONDS: &str = "CHECKER_SECONDS";

/// The run ends after this many faults and this many events.
const FAULTS: usize = 15;
const EVENTS: i64 = 3000;

/// Logs to which all processes write.
const SHARED: usize = 2;

/// Processes. One is killed and one falls into black holes; all other faults hit all of them.
const SLOTS: usize = 3;
const KILLED: usize = 1;
const LOST: usize = 2;

/// Limit of the stops of the server, which is not restarted after more.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(20);

#[test]
fn one_of_several() {
    let Some((address, orders)) = told() else { return };
    run(Child::run(&address, orders));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The server ends all sessions of all processes.
    Backends,
    /// RST from the network to all sessions of a process.
    Reset,
    /// An append is done, and its answer is lost.
    Answer,
    /// An append is lost before it is done.
    Request,
    /// `SIGKILL` to a process, which another one replaces.
    Kill,
    /// The network of a process drops everything without an error, until the process notices. Meanwhile, another process is
    /// killed.
    BlackHole,
    /// Open connections fall silent until their process notices.
    Freeze,
    /// More notifications than the queue of a bus.
    Flood,
    /// The server stops, and starts.
    Restart,
    /// The server forgets the last batches of a brief log.
    LostTail,
}

impl Fault {
    fn of(number: usize) -> Self {
        match number % 13 {
            0 | 6 => Self::Backends,
            1 | 8 => Self::Reset,
            2 | 9 => Self::Answer,
            3 => Self::Kill,
            4 => Self::Flood,
            5 => Self::BlackHole,
            7 => Self::Request,
            10 => Self::Restart,
            12 => Self::LostTail,
            _ => Self::Freeze,
        }
    }
}

/// The current process of a slot, and the notes of those before it.
struct Slot {
    process: Process,
    proxy: Proxy,
    memory: Memory,
    generation: usize,
}

struct Checker {
    server: TestServer,
    db: TestDb,
    shared: Vec<LogId>,
    owned: Vec<LogId>,
    slots: Vec<Slot>,
    briefs: Briefs,
    judge: Judge,
    restarted: Instant,
    faults: BTreeMap<Fault, usize>,
}

impl Checker {
    async fn begin(server: TestServer) -> Self {
        let db = server.create("../../migrations").await.expect("a database");
        let count = i64::try_from(SHARED + SLOTS).expect("few");
        let make = "insert into event_logs select from generate_series(1, $1) returning id";
        let logs: Vec<i64> = sqlx::query_scalar(make).bind(count).fetch_all(&db.pool()).await.expect("logs");
        // A foreign key keeps the logs that are compared at the end.
        sqlx::raw_sql("create table kept (log bigint primary key references event_logs (id))")
            .execute(&db.pool())
            .await
            .expect("made");
        let keep = "insert into kept select id from event_logs";
        sqlx::query(keep).execute(&db.pool()).await.expect("kept");
        let briefs = Briefs::begin(&db).await;
        let mut shared: Vec<LogId> = logs.into_iter().map(LogId).collect();
        let owned = shared.split_off(SHARED);
        let mut checker = Self {
            server,
            db,
            shared,
            owned,
            slots: Vec::new(),
            briefs,
            judge: Judge::default(),
            restarted: Instant::now(),
            faults: BTreeMap::new(),
        };
        for slot in 0..SLOTS {
            let proxy = Proxy::start(&checker.db).expect("a proxy");
            let memory = Memory::default();
            let process = checker.start(slot, 0, &proxy, &memory).await;
            checker.slots.push(Slot { process, proxy, memory, generation: 0 });
        }
        checker
    }

    async fn start(&self, slot: usize, generation: usize, proxy: &Proxy, memory: &Memory) -> Process {
        let mut process = Process::start("checker::one_of_several", &proxy.url());
        let (shared, owned) = (list(&self.shared), list(&self.owned));
        let once = pairs(&memory.once);
        process.ask(&format!("begin {slot} {generation} {shared} {owned} {once}")).await;
        process
    }

    async fn inflict(&mut self, number: usize, brief: LogId) {
        let mut fault = Fault::of(number);
        if fault == Fault::Restart && self.restarted.elapsed() < BETWEEN_RESTARTS && number > FAULTS {
            fault = Fault::Backends;
        }
        *self.faults.entry(fault).or_default() += 1;
        let any = number % SLOTS;
        match fault {
            Fault::Backends => {
                let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                            where datname = current_database() and application_name in ('backend', 'bus', 'notifier')";
                sqlx::query(kill).execute(&self.db.pool()).await.expect("killed");
            }
            Fault::Reset => self.slots[any].proxy.reset(),
            // Each event names its writer.
            Fault::Answer => self.slots[any].proxy.cut_answer_to(format!("s{any}/")),
            Fault::Request => self.slots[any].proxy.cut_before(format!("s{any}/")),
            Fault::Kill => self.replace(KILLED).await,
            Fault::BlackHole | Fault::Freeze => {
                let lost = &mut self.slots[LOST];
                if fault == Fault::BlackHole {
                    lost.proxy.black_hole();
                } else {
                    lost.proxy.freeze();
                }
                lost.process.ask("lost").await;
                if fault == Fault::BlackHole {
                    self.replace(KILLED).await;
                }
                // The other processes go on.
                self.progress(Some(LOST)).await;
                self.slots[LOST].proxy.heal();
            }
            Fault::Flood => {
                let coalesced: u64 = self.slots[any].process.ask("flood").await.parse().expect("a number");
                *self.judge.counts.entry("flooded".to_owned()).or_default() += coalesced;
            }
            Fault::LostTail => {
                // A trim would remove the place of the loss from the log.
                self.briefs.trim(false);
                let last = self.briefs.append().await;
                self.all(&format!("brief-reach {brief}:{last}"), |_| true).await;
                self.briefs.lose_tail(&self.db).await;
                // More events than were lost, with the same ids.
                let last = self.briefs.append().await;
                self.all(&format!("brief-reach {brief}:{last}"), |_| true).await;
                self.briefs.trim(true);
            }
            Fault::Restart => {
                self.server.restart(Stop::Fast).await.expect("restarted");
                self.restarted = Instant::now();
            }
        }
    }

    /// Begins a brief log, which all processes watch.
    async fn begin_brief(&mut self, number: usize) -> LogId {
        let log = self.briefs.create().await;
        if number.is_multiple_of(3) {
            self.briefs.hold(&self.db).await;
        }
        self.all(&format!("brief {log}"), |_| true).await;
        self.briefs.append().await;
        log
    }

    /// Finishes the brief log, which is removed from then on unless it is held.
    async fn end_brief(&mut self) {
        self.briefs.append().await;
        let (log, held) = self.briefs.finish().await;
        self.judge.brief.insert(log.0, held);
    }

    /// Kills a process; its replacement continues its work.
    async fn replace(&mut self, slot: usize) {
        let Slot { process, proxy, mut memory, generation } = self.slots.remove(slot);
        self.judge.hear(&mut memory, &process.kill());
        let generation = generation + 1;
        let process = self.start(slot, generation, &proxy, &memory).await;
        self.slots.insert(slot, Slot { process, proxy, memory, generation });
    }

    /// Waits until each process has stored new events and seen new events in each log; process `lost` is exempt.
    async fn progress(&mut self, lost: Option<usize>) {
        let mut grow = self.shared.clone();
        grow.extend(
            self.owned.iter().enumerate().filter(|(slot, _)| Some(*slot) != lost).map(|(_, log)| log),
        );
        self.all(&format!("progress {}", list(&grow)), |slot| Some(slot) != lost).await;
    }

    /// While no task writes, all watchers must see all stored events, without later ones to wake them.
    async fn rest(&mut self) -> i64 {
        self.all("pause", |_| true).await;
        let heads: Vec<(i64, i64)> = sqlx::query_as(
            "select kept.log, coalesce(max(last), 0) from kept left join event_log_batches using (log) group by kept.log",
        )
        .fetch_all(&self.db.pool())
        .await
        .expect("where the logs end");
        let heads: BTreeMap<i64, i64> = heads.into_iter().collect();
        self.all(&format!("reach {}", pairs(&heads)), |_| true).await;
        self.all("go", |_| true).await;
        heads.values().sum()
    }

    /// Sends an order to all processes at once, and waits until all have carried it out.
    async fn all(&mut self, order: &str, who: impl Fn(usize) -> bool) {
        let mut told: Vec<&mut Slot> =
            self.slots.iter_mut().enumerate().filter(|(slot, _)| who(*slot)).map(|(_, slot)| slot).collect();
        for slot in &mut told {
            slot.process.tell(order);
        }
        for slot in told {
            slot.process.hear().await;
            self.judge.hear(&mut slot.memory, &slot.process.notes());
        }
    }

    /// Finishes all logs, and compares them with the notes.
    async fn end(mut self) -> Judge {
        self.all("end", |_| true).await;
        let config = Config::from_url(&self.db.url()).expect("an address");
        let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
        let events = EventLogs::new(Pool::new(&config, PoolOptions::backend()), &bus);
        let mut own = Memory::default();
        for log in self.shared.clone() {
            let key = format!("end/{log}");
            let last = NewEvent::new(kind(&key, 0), format!("{key}.0"));
            let ids =
                timeout(PATIENCE, events.finish(log, &[last])).await.expect("in time").expect("finished");
            let notes = [format!("try {log} {key} 1"), format!("ack {key} {}", ids.start())];
            self.judge.hear(&mut own, &notes);
        }
        self.all("drain", |_| true).await;
        self.judge.compare(&self.db).await;
        for (name, count) in self.briefs.end().await {
            self.judge.counts.insert(name.to_owned(), count);
        }
        for (fault, count) in self.faults {
            self.judge.counts.insert(format!("fault-{fault:?}"), count as u64);
        }
        self.judge
    }
}

fn list(logs: &[LogId]) -> String {
    logs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn pairs(numbers: &BTreeMap<i64, i64>) -> String {
    if numbers.is_empty() {
        return "-".to_owned();
    }
    numbers.iter().map(|(log, number)| format!("{log}:{number}")).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watcher_sees_every_event_once_and_in_order_whatever_happens() {
    let wanted =
        std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let begun = Instant::now();
    let server = TestServer::throwaway().await.expect("a server");
    let mut checker = Checker::begin(server).await;

    let (mut number, mut events) = (0, 0);
    while number < FAULTS || events < EVENTS || wanted.is_some_and(|wanted| begun.elapsed() < wanted) {
        checker.progress(None).await;
        let brief = checker.begin_brief(number).await;
        checker.inflict(number, brief).await;
        checker.end_brief().await;
        events = checker.rest().await;
        number += 1;
    }
    let judge = checker.end().await;

    println!("{number} faults in {:.1?}", begun.elapsed());
    for (name, count) in &judge.counts {
        println!("{count:>9} {name}");
    }
    // Otherwise the run has shown nothing.
    for name in [
        "sent-again",
        "unknown-stored",
        "resumed",
        "came-late",
        "overtaken",
        "flooded",
        "fault-LostTail",
        "told-rewound",
        "told-trimmed",
        "told-removed",
        "told-finished",
        "retained-logs",
        "trimmed-batches",
        "retained-and-kept",
    ] {
        assert!(judge.counts.get(name).is_some_and(|count| *count > 0), "{name}: {:?}", judge.counts);
    }
}
