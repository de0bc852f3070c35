//! Repeats an operation one after the other for a slice of time.

use std::time::{Duration, Instant};

use crate::load::Slice;

/// Counts repetitions: all that begin within the slice, at least one.
pub(crate) struct Times {
    began: Instant,
    slice: Duration,
    begun: u32,
}

impl Times {
    pub(crate) fn new(slice: Duration) -> Self {
        Self { began: Instant::now(), slice, begun: 0 }
    }

    /// Whether another repetition should begin; if so, counts it.
    pub(crate) fn again(&mut self) -> bool {
        let again = self.begun == 0 || self.began.elapsed() < self.slice;
        self.begun += u32::from(again);
        again
    }

    /// The number of repetitions begun.
    pub(crate) fn begun(&self) -> u32 {
        self.begun
    }

    /// The slice, with this number of operations in each repetition.
    pub(crate) fn over(self, operations: f64) -> Slice {
        Slice::of(operations * f64::from(self.begun) / self.began.elapsed().as_secs_f64(), None)
    }
}
