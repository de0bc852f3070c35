//! Operations that start at fixed times, whether or not the earlier ones have ended: an open loop.
//!
//! In a closed loop, tasks wait for an answer before they send the next request, so a slow pool gets fewer requests. Requests to a
//! service arrive whenever clients send them, and each one that waits takes longer.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;

use crate::latency::{Latency, nanoseconds};
use crate::load::{PATIENCE, Slice, WARM_UP, Work};

/// The rate at which operations start, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    pub(crate) per_second: f64,
    pub(crate) slice: Duration,
}

impl Arrivals {
    /// Spawns a task for each operation when it is due, and times it from then until its end. The calling thread, which is not a worker
    /// of the runtime, does nothing else; its own delay counts as latency.
    pub(crate) fn run(self, runtime: &Runtime, work: &Arc<impl Work>) -> anyhow::Result<Slice> {
        ensure!(self.per_second.is_normal() && self.per_second > 0.0, "{} a second", self.per_second);
        let apart = Duration::from_secs_f64(self.per_second.recip()).max(Duration::from_nanos(1));
        let within = |time: Duration| u32::try_from(time.as_nanos() / apart.as_nanos());
        let (uncounted, all) = (within(WARM_UP)?, within(WARM_UP + self.slice)?);

        let (done, ended) = mpsc::channel();
        let began = Instant::now();
        for n in 0..all {
            let due = began + apart * n;
            let early = due.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                thread::sleep(early);
            }
            let (work, done) = (Arc::clone(work), done.clone());
            runtime.spawn(async move {
                let result = work.once(0, n.into()).await;
                let latency = result.map(|()| (n, nanoseconds(due.elapsed())));
                // The receiver lives until the last operation has ended or timed out.
                let _: Result<_, _> = done.send(latency);
            });
        }
        drop(done);

        let mut latencies = Vec::new();
        for _ in 0..all {
            let (n, latency) = ended.recv_timeout(PATIENCE).context("an operation did not end")??;
            if n >= uncounted {
                latencies.push(latency);
            }
        }
        let elapsed = began.elapsed().saturating_sub(WARM_UP);
        let rate = f64::from(u32::try_from(latencies.len())?) / elapsed.as_secs_f64();
        Ok(Slice::of(rate, Latency::of(latencies)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::runtime;
    use tokio::sync::Barrier;

    use super::*;

    const ARRIVALS: Arrivals = Arrivals { per_second: 1000.0, slice: Duration::from_millis(50) };

    fn one_worker() -> Runtime {
        runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    }

    /// Ends only when all operations have started.
    struct Together(Barrier);

    impl Work for Together {
        async fn once(&self, _task: u32, _n: i64) -> anyhow::Result<()> {
            self.0.wait().await;
            Ok(())
        }
    }

    #[test]
    fn an_operation_starts_when_it_is_due_even_if_earlier_ones_have_not_ended() {
        // 50 operations of the warm-up, and 50 that count.
        let work = Arc::new(Together(Barrier::new(100)));

        let slice = ARRIVALS.run(&one_worker(), &work).expect("all operations have ended");

        // The first counted operation has waited for 49 later ones.
        assert!(slice.latency.expect("latencies").p99 >= 48_000.0, "{slice:?}");
    }

    /// The first operation blocks the only worker.
    struct Blocks(AtomicBool);

    impl Work for Blocks {
        async fn once(&self, _task: u32, _n: i64) -> anyhow::Result<()> {
            if !self.0.swap(true, Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        }
    }

    #[test]
    fn an_operation_is_timed_from_when_it_is_due() {
        let work = Arc::new(Blocks(AtomicBool::new(false)));

        let slice = ARRIVALS.run(&one_worker(), &work).expect("all operations have ended");

        // All were due within the first 100 ms, and started after 200 ms.
        assert!(slice.latency.expect("latencies").p50 >= 100_000.0, "{slice:?}");
    }

    struct Fails;

    impl Work for Fails {
        async fn once(&self, _task: u32, n: i64) -> anyhow::Result<()> {
            ensure!(n != 7, "the seventh");
            Ok(())
        }
    }

    #[test]
    fn a_failed_operation_is_an_error() {
        let error = ARRIVALS.run(&one_worker(), &Arc::new(Fails)).expect_err("an error");

        assert_eq!(error.to_string(), "the seventh");
    }
}
