//! Pauses between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Attempts without any pause would keep a processor busy.
const MIN: Duration = Duration::from_millis(1);

/// Exponential backoff with jitter, without an end. Each pause is twice as long as the one before, up to the longest, and jitter makes
/// it up to twice as long again, so that many clients of one server do not retry at the same moment.
#[derive(Debug)]
pub struct Backoff {
    pauses: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`. Each is at least 1 ms.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        let (first, longest) = (first.max(MIN), longest.max(MIN));
        let pauses = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build();
        Self { pauses, longest }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_with_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));

        for shortest in [10, 20, 35, 35, 35, 35] {
            let pause = backoff.pause();
            let shortest = Duration::from_millis(shortest);
            assert!(pause >= shortest && pause <= 2 * shortest, "{pause:?} instead of {shortest:?}");
        }
    }

    #[test]
    fn a_pause_of_zero_is_1_ms() {
        for longest in [Duration::ZERO, Duration::from_secs(1)] {
            let mut backoff = Backoff::new(Duration::ZERO, longest);

            assert!((0..100).all(|_| backoff.pause() >= MIN), "{longest:?}");
        }
    }
}
