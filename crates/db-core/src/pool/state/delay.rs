//! How long callers wait, and since when that is too long.

use std::time::{Duration, Instant};

use crate::pool_options::Limits;

/// Whether everybody who gets a connection has waited for too long for a whole interval.
///
/// A short queue is good: it absorbs a burst. A queue that never gets short has callers in it for nothing, since each of them could be refused at
/// once and as many would be served. The two are told apart by the shortest wait of an interval, as in `CoDel` (RFC 8289, section 3) and in
/// Elixir's `DBConnection`.
#[derive(Debug, Default)]
pub(super) struct Delay {
    /// Since when nobody got a connection in time; `None` if the last one did.
    late_since: Option<Instant>,
    /// When somebody was last seen to be late.
    seen: Option<Instant>,
    /// When somebody last got a connection in time.
    good: Option<Instant>,
}

impl Delay {
    /// A caller got a connection that was given back. One that has overtaken others says nothing of the queue if it was served in time.
    pub(super) fn served(&mut self, since: Instant, now: Instant, limits: &Limits, has_overtaken: bool) {
        match limits.queue_target {
            Some(target) if now.saturating_duration_since(since) > target => {
                self.late(since + target, now, limits.queue_interval);
            }
            _ if has_overtaken => {}
            _ => self.in_time(now),
        }
    }

    /// A caller got a connection without having waited for others.
    pub(super) fn in_time(&mut self, now: Instant) {
        self.late_since = None;
        self.good = Some(now);
    }

    /// The caller that has waited for longest is still waiting.
    pub(super) fn waits(&mut self, since: Instant, now: Instant, target: Duration, interval: Duration) {
        if now.saturating_duration_since(since) > target {
            self.late(since + target, now, interval);
        }
    }

    /// Whether nobody got a connection in time for this interval.
    pub(super) fn is_long(&self, now: Instant, interval: Duration) -> bool {
        let is_over = |since| now.saturating_duration_since(since) >= interval;
        self.late_since.is_some_and(is_over) && !self.is_of_old(now, interval)
    }

    /// The earliest time at which the interval is over if nobody gets a connection in time; `None` if that is beyond the clock's range.
    pub(super) fn long_at(&self, now: Instant, interval: Duration) -> Option<Instant> {
        self.late_since.unwrap_or(now).checked_add(interval)
    }

    fn late(&mut self, at: Instant, now: Instant, interval: Duration) {
        if self.is_of_old(now, interval) {
            self.late_since = None;
        }
        let from = self.good.map_or(at, |good| good.max(at));
        self.late_since.get_or_insert(from);
        self.seen = Some(now);
    }

    /// What was seen an interval ago is of another time.
    fn is_of_old(&self, now: Instant, interval: Duration) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) > interval)
    }
}
