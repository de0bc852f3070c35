//! The figures of all pools, the bus and the streams, as a block of the log.

use std::time::Duration;

use db_core::{Pool, Stats, Totals};

use crate::mean::mean;
use crate::redis::RedisFigures;
use crate::{Db, MonitorOptions};

/// When to log them, and what was logged last.
#[derive(Debug)]
pub(crate) struct Figures {
    options: MonitorOptions,
    /// When they were logged, since the first look.
    last: Duration,
    pools: Vec<Stats>,
    bus: Option<BusFigures>,
    events: Option<EventFigures>,
    redis: Option<RedisLine>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BusFigures {
    connected: bool,
    subscribers: usize,
    pending: usize,
    sent: u64,
    gaps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct EventFigures {
    followers: usize,
    followed: usize,
    pages: u64,
    /// In seconds.
    lag: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RedisLine {
    connected: bool,
    without: u64,
    figures: RedisFigures,
}

impl Figures {
    pub(crate) fn new(options: MonitorOptions) -> Self {
        Self { options, last: Duration::ZERO, pools: Vec::new(), bus: None, events: None, redis: None }
    }

    /// Logs them if it is time.
    pub(crate) fn log(&mut self, db: &Db, now: Duration) {
        let MonitorOptions { log_every, quiet, .. } = self.options;
        if log_every.is_zero() || now.saturating_sub(self.last) < log_every {
            return;
        }
        // Not the time of this look, or each block would be later than the one before. Those that were missed are not made up for.
        self.last += log_every;
        if now.saturating_sub(self.last) >= log_every {
            self.last = now;
        }
        let pools: Vec<Stats> = db.all_pools().map(Pool::stats).collect();
        let bus = db.bus().state();
        let bus = BusFigures {
            connected: bus.is_connected(),
            subscribers: bus.subscribers,
            pending: bus.pending,
            sent: bus.sent,
            gaps: bus.gaps,
        };
        let state = db.events().state();
        let events = EventFigures {
            followers: state.followers,
            followed: state.followed,
            pages: state.pages,
            lag: state.lag.map(|lag| lag.as_secs_f64()),
        };
        let redis = db.redis_health().map(|redis| RedisLine {
            connected: redis.is_connected(),
            without: redis.without,
            figures: redis.figures.unwrap_or_default(),
        });
        if quiet
            && (&pools, Some(bus), Some(events), redis.map(RedisLine::still))
                == (&self.pools, self.bus, self.events, self.redis.map(RedisLine::still))
        {
            return;
        }
        self.pools.resize(pools.len(), Stats::default());
        for ((pool, stats), before) in db.all_pools().zip(&pools).zip(&self.pools) {
            log(pool, stats, &before.totals);
        }
        (self.pools, self.bus, self.events, self.redis) = (pools, Some(bus), Some(events), redis);
        let namespace = db.bus().namespace();
        let BusFigures { connected, subscribers, pending, sent, gaps } = bus;
        tracing::info!(target: "db_layer::figures", namespace, connected, subscribers, pending, sent, gaps, "bus figures");
        let EventFigures { followers, followed, pages, lag } = events;
        tracing::info!(target: "db_layer::figures", namespace, followers, followed, pages, lag, "stream figures");
        if let Some(RedisLine { connected, without, figures }) = redis {
            let RedisFigures { connections, commands, commands_per_second, memory } = figures;
            tracing::info!(
                target: "db_layer::figures", namespace, connected, connections, commands, commands_per_second, memory, without,
                "redis figures"
            );
        }
    }
}

impl RedisLine {
    /// Without what changes by being looked at.
    fn still(self) -> (bool, u64, Option<u64>) {
        (self.connected, self.without, self.figures.connections)
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
        leaked = totals.leaked.saturating_sub(totals.leaks_returned),
        slow = totals.slow - before.slow,
        dial_failures = totals.dial_failures - before.dial_failures,
        "pool figures"
    );
}
