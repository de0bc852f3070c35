//! How long to wait between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Attempts that follow each other without a pause would keep a processor busy.
const SHORTEST: Duration = Duration::from_millis(1);

/// The pauses between attempts at something that is tried until it works. Each pause is twice as long as the one before, up to the
/// longest, and chance makes it up to twice as long: many callers that wait for the same server do not all come at one moment.
#[derive(Debug)]
pub struct Backoff {
    pauses: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Pauses from the first to the longest, without an end. Each is 1 ms at least.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        let (first, longest) = (first.max(SHORTEST), longest.max(SHORTEST));
        let pauses = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build();
        Self { pauses, longest }
    }

    /// How long to wait before the next attempt.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_up_to_twice_as_long_by_chance() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));

        for least in [10, 20, 35, 35, 35, 35] {
            let pause = backoff.pause();
            let least = Duration::from_millis(least);
            assert!(pause >= least && pause <= 2 * least, "{pause:?} instead of {least:?}");
        }
    }

    #[test]
    fn pauses_of_none_are_short_ones() {
        for longest in [Duration::ZERO, Duration::from_secs(1)] {
            let mut backoff = Backoff::new(Duration::ZERO, longest);

            assert!((0..100).all(|_| backoff.pause() >= SHORTEST), "{longest:?}");
        }
    }
}
