//! The statistics of a pool.

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
    /// Connections handed out after a wait in the queue.
    pub queued: u64,
    /// The sum of the waits in the queue.
    pub queue_wait: Duration,
    /// Connections that were given back after the server had answered all that was sent on them.
    pub returned: u64,
    /// Callers that got no connection within their time limit.
    pub timed_out: u64,
    /// Callers that were rejected immediately because [`max_waiting`](crate::PoolOptions::max_waiting) callers waited already.
    pub shed: u64,
    /// Connections dialled.
    pub dialled: u64,
    /// The sum of the times that successful dials took.
    pub dialling: Duration,
    /// Failed dials.
    pub dial_failures: u64,
    /// Connections whose link was lost.
    pub lost: u64,
    /// Connections that were returned in an unknown state and repaired.
    pub repaired: u64,
    /// Connections that were returned in an unknown state and could not be repaired in time.
    pub repair_failed: u64,
    /// Abandoned statements that were cancelled on the server.
    pub cancelled: u64,
    /// Connections held for longer than their threshold.
    pub leaked: u64,
    /// Leaked connections that were returned.
    pub leaks_returned: u64,
    /// Waits of a task that already held a connection of the same pool.
    pub nested_acquires: u64,
    /// Cached plans found stale, and forgotten by all connections.
    pub stale_plans: u64,
}
