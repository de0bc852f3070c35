//! One thing after another, for a slice of time.

use std::time::{Duration, Instant};

use crate::load::Slice;

/// As many times as are begun within a slice, and at least one.
pub(crate) struct Times {
    began: Instant,
    slice: Duration,
    begun: u32,
}

impl Times {
    pub(crate) fn new(slice: Duration) -> Self {
        Self { began: Instant::now(), slice, begun: 0 }
    }

    /// Whether it is time for another one, which then counts.
    pub(crate) fn again(&mut self) -> bool {
        let again = self.begun == 0 || self.began.elapsed() < self.slice;
        self.begun += u32::from(again);
        again
    }

    /// How many were begun.
    pub(crate) fn begun(&self) -> u32 {
        self.begun
    }

    /// Each was so many operations.
    pub(crate) fn over(self, operations: f64) -> Slice {
        Slice::of(operations * f64::from(self.begun) / self.began.elapsed().as_secs_f64(), None)
    }
}
