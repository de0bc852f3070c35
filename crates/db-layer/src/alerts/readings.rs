//! The numbers that rules read, at one moment and a minute before.

use std::collections::VecDeque;
use std::time::Duration;

use db_core::{Pool, Stats, Totals};
use db_migrate::Summary;
use db_notify::{BusState, GapReason};

use crate::redis::RedisHealth;
use crate::{DatabaseHealth, Db, NotReady};

/// How far back rates look.
const WINDOW: Duration = Duration::from_mins(1);

/// What all parts say at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Readings {
    pub(crate) pools: Vec<PoolReading>,
    pub(crate) not_ready: Option<NotReady>,
    pub(crate) bus: BusState,
    /// Gaps of the last minute through which notifications may be lost.
    pub(crate) gaps: u64,
    pub(crate) lag: Option<Duration>,
    pub(crate) migrations: Option<Summary>,
    pub(crate) keys: Option<KeyReading>,
    /// Seconds that the server's clock is ahead.
    pub(crate) clock: Option<f64>,
    pub(crate) redis: Option<RedisReading>,
}

/// What a pool says.
#[derive(Debug, Clone)]
pub(crate) struct PoolReading {
    pub(crate) name: String,
    pub(crate) now: Stats,
    /// The totals of a minute ago.
    pub(crate) before: Totals,
    pub(crate) held: Held,
}

/// What the holders of a pool's connections do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    /// Statements that have been running for too long.
    pub(crate) slow: usize,
    /// The longest time that a transaction has been idle for.
    pub(crate) idle_in_transaction: Duration,
}

impl Held {
    pub(crate) fn of(pool: &Pool) -> Self {
        pool.holders().iter().fold(Self::default(), |all, holder| {
            let idle = holder.idle.filter(|_| holder.in_transaction).unwrap_or_default();
            Self {
                slow: all.slow + usize::from(holder.slow),
                idle_in_transaction: all.idle_in_transaction.max(idle),
            }
        })
    }
}

/// What the encryption keys say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyReading {
    pub(crate) is_alarm: bool,
    pub(crate) unknown: usize,
    /// Values that are not sealed under the primary key.
    pub(crate) left: Option<u64>,
}

/// What is known of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RedisReading {
    /// None before it was asked, and once it is closed.
    pub(crate) is_away: Option<bool>,
    /// How many times somebody did without it in the last minute.
    pub(crate) without: u64,
}

/// The totals of the last minute, from which rates come.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<Sample>);

#[derive(Debug)]
struct Sample {
    at: Duration,
    pools: Vec<Totals>,
    gaps: u64,
    /// How many times somebody did without Redis.
    without: u64,
}

impl History {
    /// Reads all parts. `at` is the time since the first look.
    pub(crate) fn read(&mut self, db: &Db, at: Duration) -> Readings {
        let health = db.health();
        let stats: Vec<Stats> = db.all_pools().map(Pool::stats).collect();
        let gaps = lossy_gaps(&health.bus);
        let without = health.redis.as_ref().map_or(0, |redis| redis.without);
        let pools = stats.iter().map(|stats| stats.totals).collect();
        let then = self.before(Sample { at, pools, gaps, without });
        let pools = db.all_pools().zip(&stats).zip(&then.pools);
        Readings {
            pools: pools
                .map(|((pool, now), before)| PoolReading {
                    name: pool.name().to_owned(),
                    now: *now,
                    before: *before,
                    held: Held::of(pool),
                })
                .collect(),
            not_ready: health.not_ready,
            gaps: gaps - then.gaps,
            bus: health.bus,
            lag: db.events().state().lag,
            migrations: health.migrations,
            keys: health.sealing.map(|sealing| KeyReading {
                is_alarm: sealing.alarm.is_some(),
                unknown: sealing.unknown.len(),
                left: sealing.rekeying.and_then(|state| state.left),
            }),
            clock: health.clock_offset,
            redis: health.redis.map(|redis| RedisReading {
                is_away: is_away(&redis),
                without: redis.without - then.without,
            }),
        }
    }

    /// Adds a sample, and returns the one of a minute ago, or the oldest.
    fn before(&mut self, now: Sample) -> &Sample {
        let at = now.at;
        self.0.push_back(now);
        // The first of which the next is younger than a minute.
        while self.0.get(1).is_some_and(|next| at.saturating_sub(next.at) >= WINDOW) {
            self.0.pop_front();
        }
        &self.0[0]
    }
}

/// Whether a bus should be connected: a lazy one that nobody has used is not, and is well.
pub(crate) fn is_used(bus: &BusState) -> bool {
    bus.is_connected() || bus.trouble.is_some() || bus.last_heartbeat.is_some() || bus.subscribers > 0
}

/// Whether Redis does not answer. `None` before it was asked, and once it is closed.
pub(crate) fn is_away(redis: &RedisHealth) -> Option<bool> {
    let was_asked = !redis.is_closed && !matches!(redis.server, DatabaseHealth::NotAsked);
    was_asked.then(|| !redis.is_connected())
}

/// Gaps through which notifications may be lost: the others only say that a subscription has begun.
fn lossy_gaps(bus: &BusState) -> u64 {
    let is_lossy = |reason| !matches!(reason, GapReason::Started | GapReason::Unannounced);
    let counts = GapReason::ALL.into_iter().filter(|reason| is_lossy(*reason));
    counts.map(|reason| bus.received_gaps.of(reason)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_before_is_the_youngest_that_is_a_minute_old_or_else_the_oldest() {
        let mut history = History::default();
        let mut before = |at: u64| {
            let sample = Sample { at: Duration::from_secs(at), pools: Vec::new(), gaps: at, without: 0 };
            history.before(sample).gaps
        };

        assert_eq!([0, 20, 40, 59, 60, 79, 80, 300, 302].map(&mut before), [0, 0, 0, 0, 0, 0, 20, 80, 80]);
    }
}
