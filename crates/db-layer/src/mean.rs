//! Means of durations.

use std::time::Duration;

/// The mean of `count` durations with this sum; zero for none.
pub(crate) fn mean(sum: Duration, count: u64) -> Duration {
    let nanos = sum.as_nanos() / u128::from(count.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
