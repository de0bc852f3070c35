//! How a pool stands, and what it has been through.

use std::time::Duration;

/// How a pool stands at one moment, and what it has been through since it was made.
///
/// `open` is `in_use + idle + repairing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The most connections that may be in use or idle.
    pub max: u32,
    /// Connections that are open.
    pub open: u32,
    /// Of these, ready to be taken.
    pub idle: u32,
    /// Of these, taken.
    pub in_use: u32,
    /// Of these, being brought back to a known state, verified or closed.
    pub repairing: u32,
    /// Connections that are being made.
    pub dialling: u32,
    /// Callers in the queue.
    pub waiting: u32,
    /// What happened so far.
    pub totals: Totals,
}

/// What happened in a pool since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Connections handed out.
    pub acquired: u64,
    /// Of these, after a wait in the queue.
    pub queued: u64,
    /// How long callers waited in the queue, together.
    pub queue_wait: Duration,
    /// Callers that got none in time.
    pub timed_out: u64,
    /// Callers that were turned away at once, since enough others waited.
    pub shed: u64,
    /// Connections made.
    pub dialled: u64,
    /// How long that took, together.
    pub dialling: Duration,
    /// Attempts at making one that failed.
    pub dial_failures: u64,
    /// Connections whose link was lost.
    pub lost: u64,
    /// Connections that came back in an unknown state, and were brought back to a known one.
    pub repaired: u64,
    /// Of those that came back in an unknown state, how many could not be brought back in time.
    pub repair_failed: u64,
    /// Statements that were cut off, and cancelled on the server.
    pub cancelled: u64,
    /// Connections held for longer than their threshold.
    pub leaked: u64,
    /// Of these, how many came back after all.
    pub leaks_returned: u64,
    /// Waits of a task that held a connection of the same pool already.
    pub nested_acquires: u64,
    /// Cached plans found stale, and forgotten by all connections.
    pub stale_plans: u64,
}
