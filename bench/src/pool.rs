//! Acquiring a connection, running one query and releasing it, beside the peers.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::arrivals::Arrivals;
use crate::load::{Load, Work};
use crate::peers::pgbench::Pgbench;
use crate::peers::{Alone, Bb8, Deadpool, Diesel, Ours, PgPool, SeaOrm, Select, Take, Test};
use crate::report::{Report, median, sorted};
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;
use crate::tracker;

const CONNECTIONS: u32 = 10;

/// As many tasks as connections, and 64 tasks, most of which wait.
const TASKS: [u32; 2] = [CONNECTIONS, 64];

/// Long enough: every arm is slower in the first tenths of a second after another arm's turn.
const SLICE: Duration = Duration::from_secs(1);

/// Our pool and pgbench differ by less than the noise of two seconds on a shared machine, so they have longer turns, one right after the
/// other.
const CLOSE_SLICE: Duration = Duration::from_secs(4);

/// Acquiring alone is a thousand times faster, and needs less time.
const BARE_SLICE: Duration = Duration::from_millis(150);

/// The arrival rates in per cent of deadpool's capacity.
const SHARES: [u32; 2] = [50, 80];

/// Enough for some thousand arrivals.
const ARRIVING_SLICE: Duration = Duration::from_millis(250);

/// How many rounds of arrivals there are for each round of the others: the 99th percentile varies more between rounds than the
/// throughput does.
const ARRIVING_ROUNDS: usize = 6;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let url = database.url();
        let size = usize::try_from(CONNECTIONS)?;
        let _inside = runtime.enter();
        let ours = Ours::new(&database.config()?, CONNECTIONS);
        let pgpool = runtime.block_on(PgPool::new(url, CONNECTIONS, Test::Default))?;
        let pgpool_no_test = runtime.block_on(PgPool::new(url, CONNECTIONS, Test::Off))?;
        let deadpool = Deadpool::new(url, size)?;
        let pgbench = Pgbench::new(url)?;
        let diesel = Diesel::new(url, size)?;
        let bb8 = runtime.block_on(Bb8::new(url, CONNECTIONS))?;
        let alone = Arc::new(runtime.block_on(Alone::new(url, CONNECTIONS))?);
        let seaorm = runtime.block_on(SeaOrm::new(url, CONNECTIONS, Test::Default))?;

        let capacity = Capacity::of(runtime, Select(deadpool.clone()));
        let mut close = vec![
            Arm::new("close.10.pgbench", CLOSE_SLICE, |slice| pgbench.run(CONNECTIONS, slice)),
            select(runtime, "close.10.ours".to_owned(), CONNECTIONS, Select(ours.clone()))
                .lasting(CLOSE_SLICE),
        ];
        // Arms that are compared with each other are neighbours.
        let mut arms = vec![Arm::new("pool.10.alone", SLICE, |slice| {
            Load { tasks: CONNECTIONS, slice, timed: true }.run(runtime, &alone)
        })];
        for tasks in TASKS {
            let name = |peer| format!("pool.{tasks}.{peer}");
            arms.push(select(runtime, name("deadpool"), tasks, Select(deadpool.clone())));
            arms.push(select(runtime, name("ours"), tasks, Select(ours.clone())));
            arms.push(select(runtime, name("pgpool"), tasks, Select(pgpool.clone())));
            if tasks == CONNECTIONS {
                arms.push(select(runtime, name("pgpool_no_test"), tasks, Select(pgpool_no_test.clone())));
            }
            arms.push(select(runtime, name("diesel"), tasks, Select(diesel.clone())));
            arms.push(select(runtime, name("bb8"), tasks, Select(bb8.clone())));
            arms.push(select(runtime, name("seaorm"), tasks, Select(seaorm.clone())));
        }
        let mut arriving = Vec::new();
        for share in SHARES {
            let name = |peer| format!("pool.open.{share}.{peer}");
            arriving.push(capacity.arrive(share, name("deadpool"), Select(deadpool.clone())));
            arriving.push(capacity.arrive(share, name("ours"), Select(ours.clone())));
        }
        arms.push(take(runtime, "bare.deadpool", Take(deadpool)));
        arms.push(take(runtime, "bare.ours", Take(ours)));
        arms.push(take(runtime, "bare.pgpool", Take(pgpool)));

        let what = database.what().to_owned();
        if !only.is_empty() {
            close.append(&mut arms);
            close.append(&mut arriving);
            narrow(&mut close, only)?;
            return Ok(interleave(&close, rounds)?.report(what, Vec::new()));
        }
        let close = interleave(&close, rounds)?;
        let measured = interleave(&arms, rounds)?;
        let arrived = interleave(&arriving, ARRIVING_ROUNDS * rounds)?;
        let mut rows = vec![close.rates("pool.10.vs_pgbench", "close.10.ours", "close.10.pgbench")];
        for tasks in TASKS {
            let ours = format!("pool.{tasks}.ours");
            for peer in ["alone", "pgpool", "pgpool_no_test", "deadpool", "diesel", "bb8", "seaorm"] {
                if tasks == CONNECTIONS || !matches!(peer, "alone" | "pgpool_no_test") {
                    let name = format!("pool.{tasks}.vs_{peer}");
                    rows.push(measured.rates(name, &ours, &format!("pool.{tasks}.{peer}")));
                }
            }
            let name = format!("pool.{tasks}.p99_vs_deadpool");
            rows.push(measured.p99s(name, &ours, &format!("pool.{tasks}.deadpool")));
        }
        for share in SHARES {
            let [ours, deadpool] = ["ours", "deadpool"].map(|peer| format!("pool.open.{share}.{peer}"));
            rows.push(arrived.p99s(format!("pool.open.{share}.p99_vs_deadpool"), &ours, &deadpool));
        }
        rows.push(measured.rates("bare.vs_pgpool", "bare.ours", "bare.pgpool"));
        rows.push(measured.rates("bare.vs_deadpool", "bare.ours", "bare.deadpool"));
        rows.push(tracker::measure(runtime, database, rounds)?);
        let mut report = close.report(what.clone(), Vec::new());
        report.extend(measured.report(what.clone(), rows));
        report.extend(arrived.report(what, Vec::new()));
        Ok(report)
    })
}

fn select(runtime: &Runtime, name: String, tasks: u32, work: impl Work) -> Arm<'_> {
    let work = Arc::new(work);
    Arm::new(name, SLICE, move |slice| Load { tasks, slice, timed: true }.run(runtime, &work))
}

fn take<'a>(runtime: &'a Runtime, name: &str, work: impl Work) -> Arm<'a> {
    let work = Arc::new(work);
    let load = move |slice| Load { tasks: CONNECTIONS, slice, timed: false };
    Arm::new(name, BARE_SLICE, move |slice| load(slice).run(runtime, &work))
}

/// A peer's capacity, measured in the same run when it is first needed.
struct Capacity<'a, W> {
    runtime: &'a Runtime,
    work: Arc<W>,
    found: Cell<Option<f64>>,
}

impl<'a, W: Work> Capacity<'a, W> {
    fn of(runtime: &'a Runtime, work: W) -> Self {
        Self { runtime, work: Arc::new(work), found: Cell::new(None) }
    }

    /// Operations per second with enough tasks to keep every connection in use.
    fn per_second(&self) -> anyhow::Result<f64> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let load = Load { tasks: TASKS[1], slice: SLICE, timed: true };
        let mut rates = Vec::new();
        for _ in 0..3 {
            rates.push(load.run(self.runtime, &self.work)?.rate);
        }
        let found = median(&sorted(rates.into_iter()));
        self.found.set(Some(found));
        Ok(found)
    }

    /// An arm whose operations arrive at `share` per cent of the capacity.
    fn arrive(&self, share: u32, name: String, work: impl Work) -> Arm<'_> {
        let work = Arc::new(work);
        Arm::new(name, ARRIVING_SLICE, move |slice| {
            let per_second = self.per_second()? * f64::from(share) / 100.0;
            Arrivals { per_second, slice }.run(self.runtime, &work)
        })
    }
}
