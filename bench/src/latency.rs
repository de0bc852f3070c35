//! Latencies of operations.

use std::time::Duration;

/// The 50th and 99th percentiles in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Latency {
    /// From the nanoseconds of all operations; `None` if there was none.
    pub(crate) fn of(mut nanoseconds: Vec<u32>) -> Option<Self> {
        if nanoseconds.is_empty() {
            return None;
        }
        Some(Self { p50: percentile(&mut nanoseconds, 50), p99: percentile(&mut nanoseconds, 99) })
    }
}

/// In four bytes, to save memory. More than 4 s counts as 4 s.
pub(crate) fn nanoseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}

/// The smallest figure that `percent` of a hundred figures do not exceed.
fn percentile(nanoseconds: &mut [u32], percent: usize) -> f64 {
    let index = (nanoseconds.len() * percent).div_ceil(100) - 1;
    let (_, found, _) = nanoseconds.select_nth_unstable(index);
    f64::from(*found) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_latencies() {
        let hundred: Vec<u32> = (1..=100).rev().map(|n| n * 1000).collect();

        assert_eq!(Latency::of(hundred), Some(Latency { p50: 50.0, p99: 99.0 }));
        assert_eq!(Latency::of(vec![7000]), Some(Latency { p50: 7.0, p99: 7.0 }));
        assert_eq!(Latency::of(vec![2000, 1000]), Some(Latency { p50: 1.0, p99: 2.0 }));
        assert_eq!(Latency::of(Vec::new()), None);
    }
}
