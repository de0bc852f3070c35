//! What a limit is, and what is decided by it, as pure values.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use smallvec::SmallVec;

/// The longest time that an empty bucket may take to be full again.
const LONGEST: Duration = Duration::from_hours(366 * 24);

/// The shortest time for one request: in Redis it is kept to a microsecond.
const SHORTEST: Duration = Duration::from_micros(50);

/// How many requests a client may send in a time: from one a year to 20 000 a second. It is checked when it is given to [`RateLimit::new`](crate::RateLimit::new).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    count: u32,
    period: Duration,
    burst: u32,
}

impl Limit {
    /// This number of requests in this time. All of them may come at once, unless [`burst`](Self::burst) says otherwise.
    #[must_use]
    pub const fn per(count: u32, period: Duration) -> Self {
        Self { count, period, burst: count }
    }

    /// This number of requests a second.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self::per(count, Duration::from_secs(1))
    }

    /// This number of requests a minute.
    #[must_use]
    pub const fn per_minute(count: u32) -> Self {
        Self::per(count, Duration::from_mins(1))
    }

    /// This number of requests an hour.
    #[must_use]
    pub const fn per_hour(count: u32) -> Self {
        Self::per(count, Duration::from_hours(1))
    }

    /// This number of requests a day.
    #[must_use]
    pub const fn per_day(count: u32) -> Self {
        Self::per(count, Duration::from_hours(24))
    }

    /// How many requests may come at once.
    #[must_use]
    pub const fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }
}

/// A limit that cannot be kept, or that no header can tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RateLimitError {
    /// The name is empty or has characters that are not printable ASCII.
    #[error("the name of a rate limit must be printable ASCII, and {0:?} is not")]
    Name(String),
    /// There is no limit.
    #[error("a rate limit without limits refuses nothing")]
    NoLimit,
    /// The number or the burst is 0.
    #[error("a limit of {count} requests with a burst of {burst} lets nothing through")]
    Nothing {
        /// The number.
        count: u32,
        /// How many may come at once.
        burst: u32,
    },
    /// More than 20 000 a second.
    #[error("a limit of {count} requests in {period:?} is faster than 20000 a second")]
    TooFast {
        /// The number.
        count: u32,
        /// The time.
        period: Duration,
    },
    /// An empty bucket is full again only after more than a year.
    #[error("a client would wait for {0:?} until its limit is whole again, and a year is the most")]
    TooSlow(Duration),
}

/// A limit that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    quota: Quota,
}

impl Rule {
    pub(super) fn new(limit: Limit) -> Result<Self, RateLimitError> {
        let Limit { count, period, burst } = limit;
        let (Some(_), Some(most)) = (NonZeroU32::new(count), NonZeroU32::new(burst)) else {
            return Err(RateLimitError::Nothing { count, burst });
        };
        let interval = period / count;
        let whole = interval.saturating_mul(burst);
        if whole > LONGEST {
            return Err(RateLimitError::TooSlow(whole));
        }
        match Quota::with_period(interval) {
            Some(quota) if interval >= SHORTEST => Ok(Self { quota: quota.allow_burst(most) }),
            _ => Err(RateLimitError::TooFast { count, period }),
        }
    }

    /// How many requests the full bucket holds.
    pub(super) fn burst(self) -> u32 {
        self.quota.burst_size().get()
    }

    /// The time for one request.
    pub(super) fn interval(self) -> Duration {
        self.quota.replenish_interval()
    }

    /// How long the empty bucket takes to be full.
    pub(super) fn whole(self) -> Duration {
        self.interval() * self.burst()
    }

    /// How many requests one counts as: at most all that the bucket holds, or it would never pass.
    pub(super) fn cells(self, cost: u32) -> NonZeroU32 {
        NonZeroU32::new(cost).map_or(NonZeroU32::MIN, |cost| cost.min(self.quota.burst_size()))
    }

    /// How many requests are left in a bucket that is full again after `debt`.
    pub(super) fn left(self, debt: Duration) -> u32 {
        let room = nanos(self.whole().saturating_sub(debt)) / nanos(self.interval()).max(1);
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    /// Takes a request out of a bucket which is full again at `full_at`, in nanoseconds since any moment, or says after what time it could be.
    fn take(self, full_at: u64, now: u64, cost: u32) -> Result<u64, Duration> {
        let cell = Cell::new(Nanos::new(full_at));
        let limiter: RateLimiter<_, _, _, NoOpMiddleware<Nanos>> =
            RateLimiter::new(self.quota, Bucket(&cell), Now(Cell::new(Nanos::new(0))));
        limiter.clock().0.set(Nanos::new(now));
        match limiter.check_n(self.cells(cost)) {
            Ok(Ok(())) => Ok(cell.get().as_u64()),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(Nanos::new(now))),
            // Not with `cells`.
            Err(_) => Err(self.whole()),
        }
    }
}

/// The state of one bucket, for `governor`: it decides, and what it decides over is kept elsewhere, since a request counts in all limits or in none,
/// and since Redis may know more.
struct Bucket<'a>(&'a Cell<Nanos>);

impl StateStore for Bucket<'_> {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (told, full_at) = decide(Some(self.0.get()))?;
        self.0.set(full_at);
        Ok(told)
    }
}

/// The time of one decision. A limiter begins at 0.
struct Now(Cell<Nanos>);

impl Clock for Now {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.get()
    }
}

/// When each bucket of a client is full again, in nanoseconds since any moment.
pub(super) type Buckets = SmallVec<[u64; 2]>;

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// After what time the request would pass; `None` if it passes.
    pub(super) refused_for: Option<Duration>,
    /// After what time each bucket is full again.
    pub(super) debts: SmallVec<[Duration; 2]>,
}

/// Nanoseconds, of which a year has less than 2^55. Dividing the 128 bits of the standard library's takes a tenth of a microsecond.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Takes a request out of all buckets, or out of none.
pub(super) fn take(rules: &[Rule], buckets: &mut Buckets, now: u64, cost: u32) -> Verdict {
    buckets.resize(rules.len(), 0);
    let taken: SmallVec<[_; 2]> =
        rules.iter().zip(&*buckets).map(|(rule, full_at)| rule.take(*full_at, now, cost)).collect();
    let refused_for = taken.iter().filter_map(|taken| taken.as_ref().err()).max().copied();
    if refused_for.is_none() {
        for (full_at, taken) in buckets.iter_mut().zip(taken) {
            *full_at = taken.unwrap_or(*full_at);
        }
    }
    Verdict { refused_for, debts: debts(buckets, now) }
}

/// After what time each bucket is full again.
pub(super) fn debts(buckets: &Buckets, now: u64) -> SmallVec<[Duration; 2]> {
    buckets.iter().map(|full_at| Duration::from_nanos(full_at.saturating_sub(now))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(limit: Limit) -> Rule {
        Rule::new(limit).expect("a limit")
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn as_many_pass_as_the_bucket_holds_and_then_one_whenever_there_is_room() {
        let rules = [rule(Limit::per_hour(100))];
        let mut buckets = Buckets::new();
        let mut pass = |now| take(&rules, &mut buckets, now, 1).refused_for.is_none();

        assert_eq!((0..200).filter(|_| pass(5 * SECOND)).count(), 100);
        assert_eq!([5 + 35, 5 + 36, 5 + 37].map(|at| pass(at * SECOND)), [false, true, false]);
        assert_eq!((0..200).filter(|_| pass(3605 * SECOND)).count(), 99);
        assert_eq!((0..200).filter(|_| pass(100_000 * SECOND)).count(), 100);
    }

    #[test]
    fn a_request_counts_in_all_limits_or_in_none() {
        let rules = [rule(Limit::per_second(5)), rule(Limit::per_minute(8))];
        let mut buckets = Buckets::new();
        let mut pass = |now| take(&rules, &mut buckets, now, 1).refused_for.is_none();

        assert_eq!((0..100).filter(|_| pass(0)).count(), 5);
        assert_eq!(
            (0..100).filter(|_| pass(SECOND)).count(),
            3,
            "those that the first limit has refused do not count"
        );
        // The second limit refuses, and the first keeps what it has.
        assert_eq!((0..100).filter(|_| pass(2 * SECOND)).count(), 0);
        let verdict = take(&rules, &mut buckets, 2 * SECOND, 1);
        assert_eq!((verdict.debts[0], verdict.debts[1]), (Duration::ZERO, Duration::from_secs(58)));
        assert_eq!(verdict.refused_for, Some(Duration::from_millis(5500)));
        assert_eq!((rules[0].left(verdict.debts[0]), rules[1].left(verdict.debts[1])), (5, 0));
    }

    #[test]
    fn a_request_may_cost_more_and_at_most_the_whole_bucket() {
        let rules = [rule(Limit::per_minute(10))];
        let mut buckets = Buckets::new();

        assert_eq!(take(&rules, &mut buckets, 0, 4).refused_for, None);
        assert_eq!(take(&rules, &mut buckets, 0, 7).refused_for, Some(Duration::from_secs(6)));
        assert_eq!(take(&rules, &mut buckets, 0, u32::MAX).refused_for, Some(Duration::from_secs(24)));
        assert_eq!(take(&rules, &mut buckets, 24 * SECOND, u32::MAX).refused_for, None);
    }

    #[test]
    fn a_smaller_burst_lets_fewer_through_at_once() {
        let rules = [rule(Limit::per_hour(100).burst(3))];
        let mut buckets = Buckets::new();
        assert_eq!((0..9).filter(|_| take(&rules, &mut buckets, 0, 1).refused_for.is_none()).count(), 3);
        assert_eq!(take(&rules, &mut buckets, 0, 1).refused_for, Some(Duration::from_secs(36)));
    }

    #[test]
    fn a_limit_of_one_a_year_is_kept_and_one_that_makes_no_sense_is_refused() {
        let year = Duration::from_hours(365 * 24);
        let rules = [rule(Limit::per(1, year))];
        let mut buckets = Buckets::new();
        assert_eq!([1, 2].map(|now| take(&rules, &mut buckets, now, 1).refused_for.is_none()), [true, false]);
        assert!(rule(Limit::per_second(20_000)).interval() == SHORTEST);
        for limit in [Limit::per_second(0), Limit::per_second(1).burst(0), Limit::per(0, Duration::ZERO)] {
            assert!(matches!(Rule::new(limit), Err(RateLimitError::Nothing { .. })), "{limit:?}");
        }
        for limit in [Limit::per_second(20_001), Limit::per(1, Duration::ZERO), Limit::per_second(u32::MAX)] {
            assert!(matches!(Rule::new(limit), Err(RateLimitError::TooFast { .. })), "{limit:?}");
        }
        for limit in [Limit::per(1, Duration::MAX), Limit::per_day(1).burst(400), Limit::per(2, year * 4)] {
            assert!(matches!(Rule::new(limit), Err(RateLimitError::TooSlow(_))), "{limit:?}");
        }
    }
}
