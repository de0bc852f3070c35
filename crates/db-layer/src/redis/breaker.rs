//! When to leave Redis alone, as a pure value.

use std::time::Duration;

/// Whether Redis is asked. Times are since any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breaker {
    /// Everybody asks.
    Closed,
    /// Nobody asks before this time. Then one caller tries.
    Open { until: Duration },
    /// One caller tries, and the others wait for what it finds.
    Trying,
}

/// A permission to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    /// As everybody.
    Asks,
    /// To try, alone.
    Tries,
}

/// What an admitted caller has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Answer,
    Nothing,
    /// It gave up before.
    Unknown,
}

impl Breaker {
    pub(super) fn admit(&mut self, now: Duration) -> Option<Admitted> {
        match *self {
            Self::Closed => Some(Admitted::Asks),
            Self::Open { until } if now >= until => {
                *self = Self::Trying;
                Some(Admitted::Tries)
            }
            Self::Open { .. } | Self::Trying => None,
        }
    }

    /// What the caller has found. True if this opens a breaker that was closed.
    pub(super) fn found(&mut self, now: Duration, by: Admitted, found: Found, rest: Duration) -> bool {
        let was_closed = *self == Self::Closed;
        match (found, by) {
            // Also of somebody who asked before the breaker opened: Redis is there.
            (Found::Answer, _) => *self = Self::Closed,
            (Found::Nothing, Admitted::Tries) => *self = Self::Open { until: now.saturating_add(rest) },
            // Those who asked together are late together, and the last of them does not prolong what the first began.
            (Found::Nothing, Admitted::Asks) if was_closed => {
                *self = Self::Open { until: now.saturating_add(rest) };
            }
            // Somebody else may try.
            (Found::Unknown, Admitted::Tries) => *self = Self::Open { until: now },
            (Found::Nothing | Found::Unknown, Admitted::Asks) => {}
        }
        was_closed && *self != Self::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn after_a_failure_nobody_asks_for_a_while_and_then_one_caller_tries() {
        let mut breaker = Breaker::Closed;
        let [first, second] =
            [breaker.admit(at(0)), breaker.admit(at(0))].map(|it| it.expect("it is closed"));

        assert!(breaker.found(at(50), first, Found::Nothing, REST), "this one opens it");
        assert!(!breaker.found(at(60), second, Found::Nothing, REST), "this one was late, too");
        assert_eq!([breaker.admit(at(61)), breaker.admit(at(1049))], [None, None]);
        assert_eq!([breaker.admit(at(1050)), breaker.admit(at(1051))], [Some(Admitted::Tries), None]);

        assert!(!breaker.found(at(1100), Admitted::Tries, Found::Nothing, REST));
        assert_eq!([breaker.admit(at(2099)), breaker.admit(at(2100))], [None, Some(Admitted::Tries)]);
        assert!(!breaker.found(at(2101), Admitted::Tries, Found::Answer, REST));
        assert_eq!([breaker.admit(at(2102)), breaker.admit(at(2102))], [Some(Admitted::Asks); 2]);
    }

    #[test]
    fn a_caller_that_gives_up_while_it_tries_lets_another_one_try() {
        let mut breaker = Breaker::Open { until: at(10) };
        assert_eq!(breaker.admit(at(10)), Some(Admitted::Tries));

        assert!(!breaker.found(at(11), Admitted::Tries, Found::Unknown, REST));

        assert_eq!(breaker.admit(at(11)), Some(Admitted::Tries));
    }

    #[test]
    fn a_caller_that_gives_up_otherwise_changes_nothing_and_a_late_answer_closes() {
        let mut breaker = Breaker::Closed;
        assert!(!breaker.found(at(1), Admitted::Asks, Found::Unknown, REST));
        assert_eq!(breaker, Breaker::Closed);
        breaker = Breaker::Open { until: at(10) };
        assert!(!breaker.found(at(2), Admitted::Asks, Found::Answer, REST));
        assert_eq!(breaker, Breaker::Closed);
    }
}
