//! Writers that notify, beside writers that do not, and beside those that do it within their transactions.
//!
//! Each statement inserts a row, durably, in a transaction of its own, as an append to an event log does. `plain` says nothing of
//! it, `ours` says it on the bus after the commit, and `in_tx` says the same, on the same channel, within the transaction: one
//! round trip each, since what more of them cost would hide what a notification does. In all three the same processes listen, by
//! a bus each, to as many topics as there may be; the writers' own bus listens, too, as every process's does. Each of them has to
//! hear of whatever was committed, and a gap is an error.
//!
//! The latencies of an arm are those of delivery: from the commit until a process has received what covers it. Of `in_tx` the
//! statement is part of that, since the server notifies before it answers.

mod committed;
mod ears;
mod inserts;
mod listen;

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
use crate::notify::ears::Ears;
use crate::notify::inserts::{Inserts, Says};
use crate::report::{Report, Row};
use crate::rounds::{Arm, Measured, interleave, narrow};
use crate::server::{Commits, Database};

/// Those of the writers, who are as many.
const CONNECTIONS: [u32; 2] = [10, 50];

/// Processes that listen, and what that adds to a row's name.
const LISTENERS: [(usize, &str); 2] = [(1, ""), (8, "_8")];

/// How many topics the writers have in turn: one for all, a thousand, one for each insert.
const TOPICS: [(u32, &str); 3] = [(1, "topics_1"), (1000, "topics_1000"), (ALL, "topics_each")];

/// More than a slice has inserts. Processes listen to all of these.
const ALL: u32 = 1 << 16;

/// What is said last in a slice.
const END: &str = "end";

/// Long enough for a hundred commits of each of many writers, and short, so that arms that are compared follow each other soon: the
/// machine changes within seconds.
const SLICE: Duration = Duration::from_millis(250);

/// How long what is sent last may take to be sent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Of some arms alone, if they are named, there are no rows.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with_commits(runtime, Commits::Durable, |database| {
        let _inside = runtime.enter();
        let bench = Bench::new(runtime, database)?;
        let mut arms = Vec::new();
        // Those who follow each other are listened to by as many processes, which therefore stay.
        for (listeners, _) in LISTENERS {
            for writers in &bench.writers {
                arms.push(bench.arm(writers, listeners, (ALL, "plain"), Says::Nothing));
                for topics in TOPICS {
                    if listeners == 1 {
                        arms.push(bench.arm(writers, listeners, topics, Says::WithinTheTransaction));
                    }
                    arms.push(bench.arm(writers, listeners, topics, Says::AfterTheCommit));
                }
            }
        }
        let narrowed = narrow(&mut arms, only)?;
        let measured = interleave(&arms, rounds)?;
        let rows = if narrowed { Vec::new() } else { rows(&measured) };
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

/// Each of the three numbers of topics has a row; the one that has a target is the worst of them.
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

/// Of an arm.
fn name(connections: u32, listeners: usize, topics: &str, who: &str) -> String {
    let listeners = if listeners == 1 { "1_listener".to_owned() } else { format!("{listeners}_listeners") };
    if topics == who {
        return format!("notify.{connections}.{listeners}.{who}");
    }
    format!("notify.{connections}.{listeners}.{topics}.{who}")
}

/// What the arms share.
struct Bench<'a> {
    runtime: &'a Runtime,
    bus: Arc<Bus>,
    end: Topic,
    writers: Vec<(u32, Pool)>,
    ears: Ears,
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
        Ok(Self { runtime, bus, end: Topic::new(END)?, writers, ears: Ears::new(database.url())? })
    }

    fn arm<'b>(
        &'b self,
        (connections, pool): &'b (u32, Pool),
        listeners: usize,
        (topics, topics_name): (u32, &str),
        says: Says,
    ) -> Arm<'b> {
        let name = name(*connections, listeners, topics_name, says.name());
        Arm::new(name, SLICE, move |slice| {
            self.ears.become_as_many_as(listeners)?;
            let inserts = Arc::new(Inserts::new(pool, &self.bus, topics, *connections, says));
            let load = Load { tasks: *connections, slice, timed: false };
            let written = load.run(self.runtime, &inserts)?;
            if says == Says::Nothing {
                return Ok(written);
            }
            let latency = self.heard(&inserts.committed())?;
            Ok(Slice { latency, ..written })
        })
    }

    /// How long it took each process to hear of each commit.
    fn heard(&self, committed: &[Committed]) -> anyhow::Result<Option<Latency>> {
        ensure!(committed.len() < ALL as usize, "{} inserts do not have a topic each", committed.len());
        // What is committed comes before it, by whatever way it was said.
        let end = async { timeout(PATIENCE, self.bus.notify(&self.end)).await };
        self.runtime.block_on(end)??;
        let mut all = Vec::new();
        for heard in self.ears.heard()? {
            all.extend(delays(committed, &heard)?);
        }
        Ok(Latency::of(all))
    }
}
