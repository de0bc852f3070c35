//! Operations that begin at fixed times, whether or not the earlier ones have ended: an open loop.
//!
//! Tasks that wait for an answer before they ask again ask less of a pool that is slow. Requests of a service do not: they come when
//! their clients send them, and each that waits is a request that took longer.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;

use crate::latency::{Latency, nanoseconds};
use crate::load::{PATIENCE, Slice, WARM_UP, Work};

/// How often an operation begins, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    pub(crate) per_second: f64,
    pub(crate) slice: Duration,
}

impl Arrivals {
    /// Spawns a task for each operation when the operation is due, and times each from then until its end. The calling thread, which
    /// is none of the runtime's workers, does nothing else: when it is late, what it is late by counts.
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
                // The receiver is there until the last operation has ended, or was given up.
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

    /// Ends only together with others.
    struct Together(Barrier);

    impl Work for Together {
        async fn once(&self, _task: u32, _n: i64) -> anyhow::Result<()> {
            self.0.wait().await;
            Ok(())
        }
    }

    #[test]
    fn an_operation_begins_when_it_is_due_though_the_earlier_ones_have_not_ended() {
        // All of them: 50 that do not count, and 50 that do.
        let work = Arc::new(Together(Barrier::new(100)));

        let slice = ARRIVALS.run(&one_worker(), &work).expect("all have ended");

        // The first one that counts has waited for 49 later ones.
        assert!(slice.latency.expect("latencies").p99 >= 48_000.0, "{slice:?}");
    }

    /// The first one keeps the only worker for itself.
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
    fn an_operation_is_timed_from_when_it_is_due_and_not_from_when_it_begins() {
        let work = Arc::new(Blocks(AtomicBool::new(false)));

        let slice = ARRIVALS.run(&one_worker(), &work).expect("all have ended");

        // All were due within the first 100 ms, and began after 200 ms.
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
    fn an_operation_that_fails_is_told() {
        let error = ARRIVALS.run(&one_worker(), &Arc::new(Fails)).expect_err("one fails");

        assert_eq!(error.to_string(), "the seventh");
    }
}
