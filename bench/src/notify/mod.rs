//! Writers that notify, beside writers that do not, and beside writers that notify inside their transactions.
//!
//! Each statement durably inserts a row in a transaction of its own, as an append to an event log does. `plain` does not notify, `ours`
//! notifies on the bus after the commit, and `in_tx` sends the same on the same channel inside the transaction. Each insert is one
//! round trip, since more would hide the cost of the notification. In all three, the same processes listen with a bus each to all
//! topics; the writers' own bus listens, too, as in every process. Each process must be notified of every commit, and a gap is an
//! error.
//!
//! The latencies of an arm are those of delivery: from the commit until a process has received a notification that covers it. For
//! `in_tx`, this includes the statement, since the server notifies before it answers.

mod committed;
mod inserts;
mod listen;
mod listeners;

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use db_core::{Pool, PoolOptions};
use db_layer::db_notify::{Bus, BusOptions, Topic};
use tokio::runtime::Runtime;
use tokio::time::timeout;

pub(crate) use listen::listen;

use crate::latency::Latency;
use crate::load::{Load, Slice};
use crate::notify::committed::{Committed, delays};
use crate::notify::inserts::{Inserts, Notifies};
use crate::notify::listeners::Listeners;
use crate::report::{Report, Row};
use crate::rounds::{Arm, Measured, interleave, narrow};
use crate::server::{Commits, Database};

/// The connections of the writers, with one writer for each.
const CONNECTIONS: [u32; 2] = [10, 50];

/// The number of listening processes, and the suffix of a row's name.
const LISTENERS: [(usize, &str); 2] = [(1, ""), (8, "_8")];

/// The number of topics that the writers use in turn: one for all, a thousand, one for each insert.
const TOPICS: [(u32, &str); 3] = [(1, "topics_1"), (1000, "topics_1000"), (ALL, "topics_each")];

/// More than the inserts of a slice. Processes listen to all of these.
const ALL: u32 = 1 << 16;

/// The last notification of a slice.
const END: &str = "end";

/// Long enough for a hundred commits of each of many writers, and short enough that compared arms follow each other soon: the
/// machine's speed changes within seconds.
const SLICE: Duration = Duration::from_millis(250);

/// How long the last notification may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with_commits(runtime, Commits::Durable, |database| {
        let _inside = runtime.enter();
        let bench = Bench::new(runtime, database)?;
        let mut arms = Vec::new();
        // Arms with the same number of listening processes are neighbours, so that the processes stay.
        for (listeners, _) in LISTENERS {
            for writers in &bench.writers {
                arms.push(bench.arm(writers, listeners, (ALL, "plain"), Notifies::Nothing));
                for topics in TOPICS {
                    if listeners == 1 {
                        arms.push(bench.arm(writers, listeners, topics, Notifies::WithinTheTransaction));
                    }
                    arms.push(bench.arm(writers, listeners, topics, Notifies::AfterTheCommit));
                }
            }
        }
        let narrowed = narrow(&mut arms, only)?;
        let measured = interleave(&arms, rounds)?;
        let rows = if narrowed { Vec::new() } else { rows(&measured) };
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

/// One row for each of the three numbers of topics; the row with the target is the worst of them.
fn rows(measured: &Measured) -> Vec<Row> {
    let (mut rows, mut slowest) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        let vs_in_tx = TOPICS.map(|(_, topics)| {
            let (ours, peer) = (name(connections, 1, topics, "ours"), name(connections, 1, topics, "in_tx"));
            measured.rates(format!("notify.{connections}.{topics}.vs_in_tx"), &ours, &peer)
        });
        rows.push(Row::lowest(format!("notify.{connections}.vs_in_tx"), &vs_in_tx));
        rows.extend(vs_in_tx);
        for (listeners, suffix) in LISTENERS {
            let plain = name(connections, listeners, "plain", "plain");
            let vs_plain = TOPICS.map(|(_, topics)| {
                let ours = name(connections, listeners, topics, "ours");
                measured.rates(format!("notify.{connections}.{topics}.vs_plain{suffix}"), &ours, &plain)
            });
            rows.push(Row::lowest(format!("notify.{connections}.vs_plain{suffix}"), &vs_plain));
            rows.extend(vs_plain);
            slowest.extend(TOPICS.map(|(_, topics)| {
                measured.p99_ms("notify.p99_ms", &name(connections, listeners, topics, "ours"))
            }));
        }
    }
    rows.push(Row::highest("notify.p99_ms", &slowest));
    rows
}

/// The name of an arm.
fn name(connections: u32, listeners: usize, topics: &str, who: &str) -> String {
    let listeners = if listeners == 1 { "1_listener".to_owned() } else { format!("{listeners}_listeners") };
    if topics == who {
        return format!("notify.{connections}.{listeners}.{who}");
    }
    format!("notify.{connections}.{listeners}.{topics}.{who}")
}

/// The state that the arms share.
struct Bench<'a> {
    runtime: &'a Runtime,
    bus: Arc<Bus>,
    end: Topic,
    writers: Vec<(u32, Pool)>,
    listeners: Listeners,
}

impl<'a> Bench<'a> {
    fn new(runtime: &'a Runtime, database: &Database) -> anyhow::Result<Self> {
        let config = database.config()?;
        runtime.block_on(inserts::make_table(&config))?;
        let bus = Arc::new(runtime.block_on(Bus::open(&config, BusOptions::default()))?);
        let pool = |connections| {
            let options = PoolOptions::api().max(connections);
            (connections, Pool::new(&config, options))
        };
        let writers = CONNECTIONS.map(pool).into();
        Ok(Self { runtime, bus, end: Topic::new(END)?, writers, listeners: Listeners::new(database.url())? })
    }

    fn arm<'b>(
        &'b self,
        (connections, pool): &'b (u32, Pool),
        listeners: usize,
        (topics, topics_name): (u32, &str),
        notifies: Notifies,
    ) -> Arm<'b> {
        let name = name(*connections, listeners, topics_name, notifies.name());
        Arm::new(name, SLICE, move |slice| {
            self.listeners.resize(listeners)?;
            let inserts = Arc::new(Inserts::new(pool, &self.bus, topics, *connections, notifies));
            let load = Load { tasks: *connections, slice, timed: false };
            let written = load.run(self.runtime, &inserts)?;
            if notifies == Notifies::Nothing {
                return Ok(written);
            }
            let latency = self.heard(&inserts.committed())?;
            Ok(Slice { latency, ..written })
        })
    }

    /// The latencies of all commits at all processes.
    fn heard(&self, committed: &[Committed]) -> anyhow::Result<Option<Latency>> {
        ensure!(committed.len() < ALL as usize, "{} inserts do not have a topic each", committed.len());
        // Sent last, so every earlier notification arrives before it.
        let end = async { timeout(PATIENCE, self.bus.notify(&self.end)).await };
        self.runtime.block_on(end)??;
        let mut all = Vec::new();
        for heard in self.listeners.heard()? {
            all.extend(delays(committed, &heard)?);
        }
        Ok(Latency::of(all))
    }
}
