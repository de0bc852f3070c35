//! What happens in a pool when nobody asks for anything.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::core::Inner;
use super::options::PoolOptions;
use super::repair::Suspect;

/// Looks after the idle connections and the overdue loans, from time to time, until the pool is closed or gone.
pub(super) async fn keep(pool: Weak<Inner>, ended: CancellationToken, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = ended.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(inner) = pool.upgrade() else { return };
        let now = Instant::now();
        tend_idle(&inner, now);
        name_leaks(&inner, now);
        inner.dial_if_wanted();
    }
}

/// Often enough for the shortest of the limits.
pub(super) fn pace(options: &PoolOptions) -> Duration {
    [options.idle_timeout, options.max_lifetime, options.keepalive, options.leak_after]
        .into_iter()
        .min()
        .map_or(Duration::from_secs(1), |shortest| shortest / 4)
        .clamp(Duration::from_millis(20), Duration::from_secs(1))
}

/// Closes what has idled or lived for too long, and asks the others for a sign of life when it is due.
fn tend_idle(inner: &Arc<Inner>, now: Instant) {
    let options = &inner.options;
    let mut core = inner.core();
    let over = (core.in_use + core.idle_count()).saturating_sub(core.limit());
    let mut spare = core.idle_count().saturating_sub(core.limits.min_idle);
    let mut over = over.min(core.idle_count());
    // Those that were not used for longest come first.
    let close = core.idle.remove_unless(|live| {
        let idled = now.saturating_duration_since(live.last_used) > options.idle_timeout;
        let too_many = over > 0 || live.expires <= now || (idled && spare > 0);
        if too_many {
            over = over.saturating_sub(1);
            spare = spare.saturating_sub(1);
        }
        !too_many
    });
    let verify =
        core.idle.remove_unless(|live| now.saturating_duration_since(live.last_seen) <= options.keepalive);
    core.repairing += u32::try_from(close.len() + verify.len()).unwrap_or(u32::MAX);
    drop(core);
    for live in close {
        inner.runtime.spawn(Suspect::new(Arc::clone(inner), live).close());
    }
    for live in verify {
        inner.runtime.spawn(Suspect::new(Arc::clone(inner), live).verify());
    }
}

/// Says once of each connection that it is held for too long.
fn name_leaks(inner: &Inner, now: Instant) {
    let sessions: Vec<_> = inner.core().sessions().collect();
    for session in sessions {
        if session.flag_leak(now) {
            inner.core().totals.leaked += 1;
            if let Some(holder) = session.holder(now) {
                let stack = holder.stack.as_ref().map(tracing::field::display);
                let (pool, pid) = (&inner.options.name, holder.pid);
                tracing::warn!(pool, pid, stack, "a connection is held for too long: {holder}");
            }
        }
    }
}
