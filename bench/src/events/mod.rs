//! Appending and reading events, beside the same with plain statements of the driver.
//!
//! Every append waits for the disk. The peers store an event as a row, and their writer knows the next id without a query, which
//! favours them. One writer, one session, one Unix socket.

mod append;
mod read;
mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_layer::{Bus, BusOptions, EventLogs, LogId};
use sqlx::postgres::PgConnection;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::load::{Load, Slice, Work};
use crate::logs;
use crate::report::{Report, Row};
use crate::rounds::{Arm, interleave, narrow};
use crate::server::{Commits, Database};

use append::{Appends, Copies, Rows};

/// The events in one append or one COPY.
const BATCHES: [i64; 2] = [100, 1000];

/// The events of the log that is read.
const EVENTS: i64 = 100_000;

/// Longer than a stall of the disk, which takes some tenths of a second.
const SLICE: Duration = Duration::from_secs(1);

/// Long enough to read the log several times.
const READING: Duration = Duration::from_millis(500);

/// The shortest turn: long enough for one commit of each arm before it counts, even on a slow disk.
const LEAST: Duration = Duration::from_millis(200);

/// One turn with a snapshot for this number of rounds, since it takes as long as several rounds of the others.
const ROUNDS_A_SNAPSHOT: usize = 3;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(
    runtime: &Runtime,
    rounds: usize,
    only: &[String],
    snapshot: Duration,
) -> anyhow::Result<Report> {
    Database::with_commits(runtime, Commits::Durable, |database| {
        let _inside = runtime.enter();
        let config = database.config()?;
        let bench = runtime.block_on(Bench::new(runtime, &config))?;
        let [hundred, thousand] = BATCHES;
        let mut arms = vec![
            // Arms that are compared with each other are neighbours.
            bench.rows("append.row_per_tx"),
            bench.appends("append.100.ours", hundred),
            bench.appends("append.1000.ours", thousand),
            bench.copies("append.1000.copy", thousand),
            Arm::new("read.ours", READING, |slice| {
                let read = read::ours(bench.events.clone(), bench.filled, slice);
                runtime.block_on(runtime.spawn(read))?
            }),
            Arm::new("read.sqlx", READING, |slice| {
                let read = read::sqlx(Arc::clone(&bench.session), bench.filled, slice);
                runtime.block_on(runtime.spawn(read))?
            }),
        ];
        let narrowed = narrow(&mut arms, only)?;
        let measured = interleave(&arms, rounds)?;
        let mut rows = Vec::new();
        if !narrowed {
            let mut turns = Vec::new();
            for _ in 0..rounds.div_ceil(ROUNDS_A_SNAPSHOT) {
                let turn = snapshot::turn(bench.events.clone(), config.clone(), snapshot);
                turns.push(runtime.block_on(runtime.spawn(turn))??);
            }
            rows = vec![
                measured.rates("append.100.vs_row_per_tx", "append.100.ours", "append.row_per_tx"),
                measured.rates("append.1000.vs_copy", "append.1000.ours", "append.1000.copy"),
                Row::new("append.snapshot", "ops/s", &turns),
                measured.rates("read.vs_sqlx", "read.ours", "read.sqlx"),
            ];
        }
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

/// The state that the arms share.
struct Bench<'a> {
    runtime: &'a Runtime,
    events: EventLogs,
    /// The driver's session.
    session: Arc<Mutex<PgConnection>>,
    /// The log to read, and the id of the peers' copy of it.
    filled: LogId,
    /// The id of the peers' next log.
    next: AtomicI64,
}

impl<'a> Bench<'a> {
    async fn new(runtime: &'a Runtime, config: &Config) -> anyhow::Result<Self> {
        logs::make_tables(config).await?;
        let session = Arc::new(Mutex::new(logs::connect_by_socket(config).await?));
        let bus = Bus::open(config, BusOptions::default()).await?;
        let events = EventLogs::new(Pool::new(config, PoolOptions::backend()), &bus);
        let filled = logs::fill(config, &events, EVENTS).await?;
        Ok(Self { runtime, events, session, filled, next: AtomicI64::new(filled.0 + 1) })
    }

    fn rows(&'a self, name: &str) -> Arm<'a> {
        Arm::new(name, SLICE, move |slice| {
            self.write(1, slice, Rows::new(Arc::clone(&self.session), self.next_log()))
        })
    }

    fn copies(&'a self, name: &str, batch: i64) -> Arm<'a> {
        Arm::new(name, SLICE, move |slice| {
            self.write(batch, slice, Copies::new(Arc::clone(&self.session), self.next_log(), batch))
        })
    }

    fn appends(&'a self, name: &str, batch: i64) -> Arm<'a> {
        Arm::new(name, SLICE, move |slice| {
            let log = self.runtime.block_on(self.events.create())?;
            self.write(batch, slice, Appends::new(self.events.clone(), log, batch))
        })
    }

    /// Each slice writes a log of its own.
    fn next_log(&self) -> LogId {
        LogId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs one writer. The rate is in events per second.
    fn write(&self, batch: i64, slice: Duration, work: impl Work) -> anyhow::Result<Slice> {
        let load = Load { tasks: 1, slice: slice.max(LEAST), timed: false };
        let Slice { rate, .. } = load.run(self.runtime, &Arc::new(work))?;
        #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
        Ok(Slice::of(rate * batch as f64, None))
    }
}
