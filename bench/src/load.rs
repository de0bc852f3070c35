//! Tasks that repeat an operation for a slice of time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::latency::{Latency, nanoseconds};

/// How long tasks run before their operations count.
pub(crate) const WARM_UP: Duration = Duration::from_millis(50);

/// How long a task may take for its last operation after the end of the slice.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The operation of an arm.
pub(crate) trait Work: Send + Sync + 'static {
    /// Runs the operation once. Tasks are numbered from 0; `n` is different each time.
    fn once(&self, task: u32, n: i64) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// How the operation is repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) tasks: u32,
    pub(crate) slice: Duration,
    /// Whether each operation is timed. Reading the clock takes as long as acquiring an idle connection.
    pub(crate) timed: bool,
}

/// The result of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    /// Operations per second.
    pub(crate) rate: f64,
    pub(crate) latency: Option<Latency>,
    /// The operations of the busiest task and of the least busy one.
    pub(crate) most: u32,
    pub(crate) fewest: u32,
    /// The cost at the server, where it was measured.
    pub(crate) cost: Option<Cost>,
}

/// The server's work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Microseconds of processor time of the server's processes for each append.
    pub(crate) processor: f64,
    /// Queries for each append.
    pub(crate) queries: f64,
}

impl Slice {
    /// A slice without figures for each task.
    pub(crate) fn of(rate: f64, latency: Option<Latency>) -> Self {
        Self { rate, latency, most: 0, fewest: 0, cost: None }
    }
}

const WARMING_UP: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

impl Load {
    /// Runs the load. The calling thread keeps the time, since tokio's timers are late when tasks never wait.
    pub(crate) fn run(self, runtime: &Runtime, work: &Arc<impl Work>) -> anyhow::Result<Slice> {
        let phase = Arc::new(AtomicU8::new(WARMING_UP));
        let tasks: Vec<JoinHandle<anyhow::Result<Done>>> = (0..self.tasks)
            .map(|task| runtime.spawn(toil(Arc::clone(work), Arc::clone(&phase), task, self.timed)))
            .collect();
        thread::sleep(WARM_UP);
        let began = Instant::now();
        phase.store(COUNTING, Ordering::Relaxed);
        thread::sleep(self.slice);
        phase.store(OVER, Ordering::Relaxed);
        let elapsed = began.elapsed();

        let mut ops = Vec::new();
        let mut latencies = Vec::new();
        for task in tasks {
            let joined = runtime.block_on(async { timeout(PATIENCE, task).await });
            let done = joined.context("a task did not finish its last operation")???;
            ops.push(done.ops);
            latencies.extend(done.latencies);
        }
        let all: u32 = ops.iter().sum();
        ensure!(all > 0, "no operation in {elapsed:?}");
        Ok(Slice {
            rate: f64::from(all) / elapsed.as_secs_f64(),
            latency: Latency::of(latencies),
            most: ops.iter().copied().max().unwrap_or(0),
            fewest: ops.iter().copied().min().unwrap_or(0),
            cost: None,
        })
    }
}

#[derive(Debug, Default)]
struct Done {
    ops: u32,
    latencies: Vec<u32>,
}

/// Counts the operations that end within the slice.
async fn toil(work: Arc<impl Work>, phase: Arc<AtomicU8>, task: u32, timed: bool) -> anyhow::Result<Done> {
    let mut done = Done::default();
    let mut n = i64::from(task) << 32;
    let mut began = Instant::now();
    loop {
        n += 1;
        work.once(task, n).await?;
        let mut latency = None;
        if timed {
            let ended = Instant::now();
            latency = Some(nanoseconds(ended - began));
            began = ended;
        }
        match phase.load(Ordering::Relaxed) {
            WARMING_UP => {}
            COUNTING => {
                done.ops += 1;
                done.latencies.extend(latency);
            }
            _ => return Ok(done),
        }
        // Work that never waits would monopolize the thread.
        if n % 128 == 0 {
            tokio::task::yield_now().await;
        }
    }
}
