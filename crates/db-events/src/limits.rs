//! The limits of statements and appends, and the pauses between attempts.

use std::time::Duration;

use db_core::Backoff;

/// The longest time between two polls of a log that is followed. A lost notification delays its readers by at most this.
pub const POLL_FLOOR: Duration = Duration::from_secs(5);

/// How long one statement may take. The wait for a connection has the pool's own limit.
pub(crate) const STATEMENT_LIMIT: Duration = Duration::from_secs(30);

/// The most events in one append.
pub(crate) const MAX_EVENTS: usize = 10_000;
/// The most bytes of text in one append.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// The longest pause between two attempts to store a batch.
pub(crate) const LONGEST_APPEND_PAUSE: Duration = Duration::from_secs(1);

/// The pauses between attempts, up to `longest`.
pub(crate) fn pauses(longest: Duration) -> Backoff {
    Backoff::new(Duration::from_millis(20), longest)
}
