//! The task that maintains a pool periodically.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::driver::Driver;
use super::state::Age;
use crate::pool_options::PoolOptions;

/// Maintains idle connections and reports overdue checkouts until the pool is closed or dropped.
pub(super) async fn keep(pool: Weak<Driver>, ended: CancellationToken, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = ended.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(driver) = pool.upgrade() else { return };
        let now = Instant::now();
        tend_idle(&driver, now);
        log_leaks(&driver, now);
    }
}

/// The interval: a quarter of the shortest limit.
pub(super) fn pace(options: &PoolOptions) -> Duration {
    [options.idle_timeout, options.max_lifetime, options.keepalive, options.leak_after]
        .into_iter()
        .min()
        .map_or(Duration::from_secs(1), |shortest| shortest / 4)
        .clamp(Duration::from_millis(20), Duration::from_secs(1))
}

/// Closes the idle connections that are too old or too many, pings the others when that is due, and dials for `min_idle`.
fn tend_idle(driver: &Arc<Driver>, now: Instant) {
    let options = &driver.options;
    let actions = driver.core().state.time_passed(now, |live| Age {
        is_expired: live.expires <= now,
        is_unused: now.saturating_duration_since(live.last_used) > options.idle_timeout,
        is_silent: now.saturating_duration_since(live.last_seen) > options.keepalive,
    });
    driver.perform(actions);
}

/// Logs each connection that is held for too long, once.
fn log_leaks(driver: &Driver, now: Instant) {
    for session in driver.sessions.all() {
        if let Some(holder) = session.flag_leak(now) {
            driver.core().totals.leaked += 1;
            let stack = holder.stack.as_ref().map(tracing::field::display);
            let (pool, pid) = (&driver.options.name, holder.pid);
            tracing::warn!(pool, pid, stack, "a connection is held for too long: {holder}");
            driver.observers.report(|observer| observer.leaked(&holder));
        }
    }
}
