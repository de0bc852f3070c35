//! How long operations took.

use std::time::Duration;

/// What most of them took, and what nearly all took at most, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Latency {
    /// From every operation's nanoseconds; nothing if there was none.
    pub(crate) fn of(mut nanoseconds: Vec<u32>) -> Option<Self> {
        if nanoseconds.is_empty() {
            return None;
        }
        Some(Self { p50: percentile(&mut nanoseconds, 50), p99: percentile(&mut nanoseconds, 99) })
    }
}

/// In four bytes, since there are many of them. What takes longer than 4 s counts as 4 s.
pub(crate) fn nanoseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}

/// The smallest figure that so many of a hundred do not exceed.
fn percentile(nanoseconds: &mut [u32], percent: usize) -> f64 {
    let index = (nanoseconds.len() * percent).div_ceil(100) - 1;
    let (_, found, _) = nanoseconds.select_nth_unstable(index);
    f64::from(*found) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_occurred() {
        let hundred: Vec<u32> = (1..=100).rev().map(|n| n * 1000).collect();

        assert_eq!(Latency::of(hundred), Some(Latency { p50: 50.0, p99: 99.0 }));
        assert_eq!(Latency::of(vec![7000]), Some(Latency { p50: 7.0, p99: 7.0 }));
        assert_eq!(Latency::of(vec![2000, 1000]), Some(Latency { p50: 1.0, p99: 2.0 }));
        assert_eq!(Latency::of(Vec::new()), None);
    }
}
