//! What a bus reports while it works, for metrics and traces.

use std::fmt;
use std::time::Duration;

use crate::Gap;

/// Hears what happens on a bus, as it happens. Each method does nothing by default. What only needs to be counted is in
/// [`BusState`](crate::BusState) as well.
///
/// The calls come from the tasks of the bus and of its subscribers, without a lock held, so a method must be quick: it must not block,
/// panic, or use the bus.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A subscription received a gap.
    fn gap(&self, gap: Gap) {
        let _ = gap;
    }

    /// A batch of notifications was sent.
    fn flushed(&self, flushed: &Flushed) {
        let _ = flushed;
    }
}

/// A batch of notifications that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flushed {
    /// The notifications in it.
    pub notifications: usize,
    /// The calls that it stands for: equal notifications that wait are sent once.
    pub calls: usize,
    /// From the moment when the batch was taken until the server had answered, with all attempts.
    pub took: Duration,
}
