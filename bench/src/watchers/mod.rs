//! Watchers of one log while it is written, beside watchers that each query by themselves.
//!
//! A writer appends 10 events every 10 ms in one statement, and notifies on the bus after the commit. `ours` are streams of
//! `EventLogs`. `polls` is the usual solution by hand: a row for each event, a pool of sqlx, and each watcher queries for
//! events after its cursor whenever it is woken; wake-ups that wait together are merged. Its writer has a session outside that
//! pool, since it would otherwise wait among the watchers. The same bus wakes both.
//!
//! Each watcher must see every event once and in order.

mod course;
mod cpu;
mod ours;
mod polls;

use std::time::Duration;

use db_core::Config;
use tokio::runtime::Runtime;

use crate::load::Slice;
use crate::logs;
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;
use crate::watchers::course::{Log, course};
use crate::watchers::cpu::Server;
use crate::watchers::ours::Ours;
use crate::watchers::polls::Polls;

const WATCHERS: [u32; 4] = [1, 10, 100, 1000];

/// More than a hundred appends.
const SLICE: Duration = Duration::from_millis(1500);

/// The events in both tables before, so that the server plans for a filled table.
const BEFORE: i64 = 20_000;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let config = database.config()?;
        let (server, ours, polls) = runtime.block_on(open(&config))?;
        let mut arms = Vec::new();
        // Arms that are compared are neighbours.
        for watchers in WATCHERS {
            arms.push(arm(runtime, &server, watchers, &ours));
            arms.push(arm(runtime, &server, watchers, &polls));
        }
        let narrowed = narrow(&mut arms, only)?;
        let measured = interleave(&arms, rounds)?;
        let mut rows = Vec::new();
        if !narrowed {
            let name = |watchers, who| format!("watchers.{watchers}.{who}");
            let (one, all) = (name(1, Ours::NAME), name(1000, Ours::NAME));
            rows.push(measured.queries("watchers.queries_growth", &all, &one));
            for watchers in WATCHERS {
                let (ours, polls) = (name(watchers, Ours::NAME), name(watchers, Polls::NAME));
                rows.push(measured.cpus(format!("watchers.{watchers}.cpu"), &ours, &polls));
                rows.push(measured.p50_gains(format!("watchers.{watchers}.lag_p50"), &ours, &polls));
            }
        }
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

async fn open(config: &Config) -> anyhow::Result<(Server, Ours, Polls)> {
    logs::make_tables(config).await?;
    let server = Server::of(config).await?;
    let ours = Ours::open(config).await?;
    let filled = logs::fill(config, ours.events(), BEFORE).await?;
    let polls = Polls::open(config, ours.bus(), filled).await?;
    Ok((server, ours, polls))
}

fn arm<'a, L: Log>(runtime: &'a Runtime, server: &'a Server, watchers: u32, log: &'a L) -> Arm<'a> {
    let name = format!("watchers.{watchers}.{}", L::NAME);
    Arm::new(name, SLICE, move |slice| -> anyhow::Result<Slice> {
        runtime.block_on(runtime.spawn(course(log.clone(), *server, watchers, slice)))?
    })
}
