//! The figures of a pool.

use std::time::Duration;

/// A pool's connections and callers at one moment, and its totals since it was made.
///
/// `open` is `in_use + idle + repairing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The limit: connections in use or idle.
    pub max: u32,
    /// Open connections.
    pub open: u32,
    /// Open connections that are ready to be taken.
    pub idle: u32,
    /// Open connections that are taken.
    pub in_use: u32,
    /// Open connections that are being verified, repaired or closed.
    pub repairing: u32,
    /// Connections that are being made.
    pub dialling: u32,
    /// Callers in the queue.
    pub waiting: u32,
    /// What has happened since the pool was made.
    pub totals: Totals,
}

/// What has happened in a pool since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Connections handed out.
    pub acquired: u64,
    /// Connections handed out after a wait in the queue.
    pub queued: u64,
    /// The sum of these waits.
    pub queue_wait: Duration,
    /// Callers that got no connection in time.
    pub timed_out: u64,
    /// Callers that were refused at once, since [`max_waiting`](crate::PoolOptions::max_waiting) callers waited.
    pub shed: u64,
    /// Connections made.
    pub dialled: u64,
    /// The time that making them took, summed.
    pub dialling: Duration,
    /// Failed attempts to make a connection.
    pub dial_failures: u64,
    /// Connections whose link was lost.
    pub lost: u64,
    /// Connections that came back in an unknown state, and were repaired.
    pub repaired: u64,
    /// Connections that came back in an unknown state, and could not be repaired in time.
    pub repair_failed: u64,
    /// Statements that were cut off, and cancelled on the server.
    pub cancelled: u64,
    /// Connections held for longer than their threshold.
    pub leaked: u64,
    /// Leaked connections that came back after all.
    pub leaks_returned: u64,
    /// Waits of a task that already held a connection of the same pool.
    pub nested_acquires: u64,
    /// Cached plans found stale, and forgotten by all connections.
    pub stale_plans: u64,
}
