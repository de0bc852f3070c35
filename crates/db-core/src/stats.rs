//! The statistics of a pool.

use std::fmt;
use std::time::Duration;

/// A pool's connections and callers at one moment, and its totals since it was created.
///
/// `open` is `in_use + idle + repairing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The limit: connections in use or idle.
    pub max: u32,
    /// Open connections.
    pub open: u32,
    /// Open connections that are ready for callers.
    pub idle: u32,
    /// Open connections that are checked out.
    pub in_use: u32,
    /// Open connections that are being pinged, repaired or closed.
    pub repairing: u32,
    /// Connections that are being dialled.
    pub dialling: u32,
    /// Callers in the queue.
    pub waiting: u32,
    /// Totals since the pool was created.
    pub totals: Totals,
}

/// Totals of a pool since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Connections handed out.
    pub acquired: u64,
    /// Connections handed out after a wait, for one that others used or for a dial.
    pub queued: u64,
    /// The sum of the waits for a connection that others used; [`dialling`](Self::dialling) is apart.
    pub queue_wait: Duration,
    /// Connections that were given back after the server had answered all that was sent on them.
    pub returned: u64,
    /// Callers that got no connection within their time limit.
    pub timed_out: u64,
    /// Callers whose [own deadline](crate::Handle::deadline) came before a connection did.
    pub past_deadline: u64,
    /// Callers that were rejected because [`max_waiting`](crate::PoolOptions::max_waiting) callers waited already, or because everybody waited
    /// for longer than [`queue_target`](crate::PoolOptions::queue_target).
    pub shed: u64,
    /// Connections dialled.
    pub dialled: u64,
    /// The sum of the times that successful dials took.
    pub dialling: Duration,
    /// Failed dials.
    pub dial_failures: u64,
    /// Connections that are gone, by what ended them.
    pub closed: Closings,
    /// Connections that were returned in an unknown state and repaired.
    pub repaired: u64,
    /// Connections that were returned in an unknown state and could not be repaired in time.
    pub repair_failed: u64,
    /// Abandoned statements that were cancelled on the server.
    pub cancelled: u64,
    /// Statements that took longer than [`slow_statement`](crate::PoolOptions::slow_statement).
    pub slow: u64,
    /// Connections held for longer than their threshold.
    pub leaked: u64,
    /// Leaked connections that were returned.
    pub leaks_returned: u64,
    /// Waits of a task that already held a connection of the same pool.
    pub nested_acquires: u64,
    /// Cached plans found stale, and forgotten by all connections.
    pub stale_plans: u64,
    /// Repetitions of [`tx_retry`](crate::Handle::tx_retry). [`Pool::retries`](crate::Pool::retries) has them by error.
    pub retries: u64,
    /// Commits that were sent and ended with [`Error::CommitUnknown`](crate::Error::CommitUnknown).
    pub ambiguous: u64,
}

/// Connections that are gone, by what ended them.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Closings([u64; CloseReason::ALL.len()]);

/// What ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// It was older than [`max_lifetime`](crate::PoolOptions::max_lifetime).
    Lifetime,
    /// Nobody used it for [`idle_timeout`](crate::PoolOptions::idle_timeout).
    Idle,
    /// It was used [`max_uses`](crate::PoolOptions::max_uses) times.
    Uses,
    /// It was one too many: above [`max`](crate::PoolOptions::max) or [`max_idle`](crate::PoolOptions::max_idle).
    Limit,
    /// It was to be replaced: by [`Pool::evict`](crate::Pool::evict), because a type was created again, or because its server accepts
    /// no writes any more.
    Evicted,
    /// Its link was lost, in use, in a check or in a repair, or the server has ended its session.
    Lost,
    /// It came back in an unknown state, and was not to be trusted after its repair, or not worth one: after a `COPY` that was not finished, or
    /// many abandoned statements.
    Repair,
    /// The pool was closed.
    Shut,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Lifetime,
        Self::Idle,
        Self::Uses,
        Self::Limit,
        Self::Evicted,
        Self::Lost,
        Self::Repair,
        Self::Shut,
    ];

    /// The reason in one word, as it is counted: `lifetime`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Idle => "idle",
            Self::Uses => "uses",
            Self::Limit => "limit",
            Self::Evicted => "evicted",
            Self::Lost => "lost",
            Self::Repair => "repair",
            Self::Shut => "shut",
        }
    }
}

impl Closings {
    /// Those of one reason.
    #[must_use]
    pub const fn of(self, why: CloseReason) -> u64 {
        self.0[why as usize]
    }

    pub(crate) fn count(&mut self, why: CloseReason) {
        self.0[why as usize] += 1;
    }
}

impl fmt::Debug for Closings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(CloseReason::ALL.map(|why| (why, self.of(why)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_by_itself() {
        for why in CloseReason::ALL {
            let mut closed = Closings::default();
            closed.count(why);

            assert_eq!(CloseReason::ALL.map(|other| closed.of(other)).iter().sum::<u64>(), 1);
            assert_eq!(closed.of(why), 1, "{closed:?}");
        }
    }
}
