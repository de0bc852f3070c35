//! The figures of all pools, the bus and the streams, as a block of the log.

use std::time::Duration;

use db_core::{Pool, Stats, Totals};

use crate::mean::mean;
use crate::{Db, MonitorOptions};

/// When to log them, and what was logged last.
#[derive(Debug)]
pub(crate) struct Figures {
    options: MonitorOptions,
    /// When they were logged, since the first look.
    last: Duration,
    pools: Vec<Stats>,
}

impl Figures {
    pub(crate) fn new(options: MonitorOptions) -> Self {
        Self { options, last: Duration::ZERO, pools: Vec::new() }
    }

    /// Logs them if it is time.
    pub(crate) fn log(&mut self, db: &Db, now: Duration) {
        let MonitorOptions { log_every, quiet, .. } = self.options;
        if log_every.is_zero() || now.saturating_sub(self.last) < log_every {
            return;
        }
        self.last = now;
        let pools: Vec<Stats> = db.all_pools().map(Pool::stats).collect();
        if quiet && pools == self.pools {
            return;
        }
        self.pools.resize(pools.len(), Stats::default());
        for ((pool, stats), before) in db.all_pools().zip(&pools).zip(&self.pools) {
            log(pool, stats, &before.totals);
        }
        self.pools = pools;
        let bus = db.bus().state();
        tracing::info!(
            target: "db_layer::figures",
            connected = bus.is_connected(),
            subscribers = bus.subscribers,
            pending = bus.pending,
            sent = bus.sent,
            gaps = bus.gaps,
            "bus figures"
        );
        let events = db.events().state();
        tracing::info!(
            target: "db_layer::figures",
            followers = events.followers,
            followed = events.followed,
            pages = events.pages,
            lag = events.lag.map(|lag| lag.as_secs_f64()),
            "stream figures"
        );
    }
}

/// One pool, with what it did since the last time.
fn log(pool: &Pool, stats: &Stats, before: &Totals) {
    let Stats { max, open, idle, in_use, waiting, totals, .. } = *stats;
    let acquired = totals.acquired - before.acquired;
    let wait = totals.queue_wait.saturating_sub(before.queue_wait);
    let mean_wait_ms = mean(wait, acquired).as_secs_f64() * 1000.0;
    tracing::info!(
        target: "db_layer::figures",
        pool = pool.name(),
        total = open,
        idle,
        waiting,
        in_use,
        max,
        utilization = format!("{:.2}%", 100.0 * f64::from(in_use) / f64::from(max.max(1))),
        acquired,
        mean_wait_ms,
        timed_out = totals.timed_out - before.timed_out,
        shed = totals.shed - before.shed,
        leaked = totals.leaked - totals.leaks_returned,
        slow = totals.slow - before.slow,
        dial_failures = totals.dial_failures - before.dial_failures,
        "pool figures"
    );
}
