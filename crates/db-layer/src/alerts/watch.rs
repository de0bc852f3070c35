//! Which alerts are raised: a pure value, which readings change.

use std::time::{Duration, SystemTime};

use super::readings::Readings;
use super::{Alert, Read, Rule, all};

/// The state of all rules.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Those whose number is above its limit, or was a while ago and has raised an alert.
    seen: Vec<Seen>,
}

/// The state of a rule, for one pool or for the database.
#[derive(Debug)]
struct Seen {
    rule: &'static Rule,
    pool: Option<String>,
    state: State,
}

#[derive(Debug, Clone, Copy)]
struct State {
    value: f64,
    /// Since when the number is above the limit: without a break, until the alert is raised.
    above_since: Duration,
    last_above: Duration,
    raised: Option<SystemTime>,
}

/// A change of an alert.
#[derive(Debug)]
pub(crate) enum Change {
    Raised(Alert),
    Cleared(Alert),
}

impl Watch {
    /// Takes the readings of a moment: `at` since the first, and `time` for people.
    pub(crate) fn step(&mut self, at: Duration, time: SystemTime, readings: &Readings) -> Vec<Change> {
        let mut changes = Vec::new();
        for rule in all() {
            match rule.read {
                Read::Database(read) => changes.extend(self.take(rule, None, at, time, read(readings))),
                Read::Pool(read) => {
                    for pool in &readings.pools {
                        changes.extend(self.take(rule, Some(&pool.name), at, time, read(pool)));
                    }
                }
            }
        }
        changes
    }

    /// The alerts that are raised.
    pub(crate) fn alerts(&self) -> Vec<Alert> {
        self.seen.iter().filter_map(Seen::alert).collect()
    }

    fn take(
        &mut self,
        rule: &'static Rule,
        pool: Option<&str>,
        at: Duration,
        time: SystemTime,
        value: Option<f64>,
    ) -> Option<Change> {
        let above = value.filter(|value| *value > rule.above);
        let place =
            self.seen.iter().position(|seen| seen.rule.name == rule.name && seen.pool.as_deref() == pool);
        let place = match (place, above) {
            (None, None) => return None,
            (Some(place), _) => place,
            (None, Some(value)) => {
                let state = State { value, above_since: at, last_above: at, raised: None };
                self.seen.push(Seen { rule, pool: pool.map(str::to_owned), state });
                self.seen.len() - 1
            }
        };
        let seen = &mut self.seen[place];
        let was_raised = seen.alert();
        let stays = seen.state.take(rule, at, time, above);
        match (was_raised, seen.alert()) {
            (None, Some(alert)) => Some(Change::Raised(alert)),
            _ if stays => None,
            (was_raised, _) => {
                self.seen.swap_remove(place);
                was_raised.map(Change::Cleared)
            }
        }
    }
}

impl State {
    /// Whether there is still something to remember.
    fn take(&mut self, rule: &Rule, at: Duration, time: SystemTime, above: Option<f64>) -> bool {
        let Some(value) = above else {
            return self.raised.is_some() && at.saturating_sub(self.last_above) < rule.keeps;
        };
        self.value = value;
        self.last_above = at;
        if self.raised.is_none() && at.saturating_sub(self.above_since) >= rule.lasts {
            self.raised = Some(time);
        }
        true
    }
}

impl Seen {
    fn alert(&self) -> Option<Alert> {
        let Self { rule, pool, state } = self;
        let since = state.raised?;
        Some(Alert { rule, pool: pool.clone(), value: state.value, since })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, Unit};
    use super::*;

    static RULE: Rule = Rule {
        name: "Of",
        severity: Severity::Warning,
        what: "{} of it",
        action: "do",
        expr: "it",
        unit: Unit::Count,
        above: 5.0,
        lasts: Duration::from_secs(10),
        keeps: Duration::from_secs(30),
        read: Read::Database(|_| None),
    };

    /// The changes of these values, one every 2 s: `+` raised, `-` cleared.
    fn changes(rule: &'static Rule, values: &[Option<f64>]) -> String {
        let mut watch = Watch::default();
        let mut at = Duration::ZERO;
        let step = |value: &Option<f64>| {
            let change = watch.take(rule, Some("p"), at, SystemTime::UNIX_EPOCH + at, *value);
            at += Duration::from_secs(2);
            match change {
                None => '.',
                Some(Change::Raised(_)) => '+',
                Some(Change::Cleared(_)) => '-',
            }
        };
        values.iter().map(step).collect()
    }

    #[test]
    fn an_alert_is_raised_after_it_lasts_and_cleared_after_it_is_over_for_long_enough() {
        let [high, low, gap] = [Some(6.0), Some(5.0), None];
        let of = |parts: &[(Option<f64>, usize)]| {
            let values: Vec<_> =
                parts.iter().flat_map(|(value, times)| std::iter::repeat_n(*value, *times)).collect();
            changes(&RULE, &values)
        };

        assert_eq!(of(&[(low, 20)]), ".".repeat(20), "at the limit is not above it");
        assert_eq!(of(&[(high, 7)]), ".....+.");
        assert_eq!(of(&[(high, 5), (low, 1), (high, 5)]), "...........", "not without a break");
        assert_eq!(of(&[(high, 6), (low, 16)]), ".....+..............-.");
        assert_eq!(of(&[(high, 6), (gap, 15)]), ".....+..............-", "unknown is not above");
        let dip = of(&[(high, 6), (low, 14), (high, 1), (low, 15)]);
        assert_eq!(dip, format!(".....+{}-", ".".repeat(29)), "a short dip is no end");
    }

    /// The rule once more, by looking at the whole history for each moment.
    fn model(rule: &Rule, values: &[Option<f64>]) -> Vec<bool> {
        let steps = |time: Duration| usize::try_from(time.as_secs() / 2).expect("few");
        let is_above = |n: usize| values[n].is_some_and(|value| value > rule.above);
        // It has been above its limit for long enough at this moment.
        let fires = |n: usize| n >= steps(rule.lasts) && (n - steps(rule.lasts)..=n).all(is_above);
        (0..values.len())
            .map(|n| {
                // Since the last moment at which it fired, it was never over for long enough.
                (0..=n).rev().find(|m| fires(*m)).is_some_and(|m| {
                    (m..=n).all(|now| {
                        let last = (m..=now).rev().find(|k| is_above(*k)).expect("it was above at the first");
                        now == last || now - last < steps(rule.keeps)
                    })
                })
            })
            .collect()
    }

    #[test]
    fn in_ten_thousand_histories_an_alert_is_what_a_look_at_the_whole_history_says() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut seen = [0_u32; 2];
        for _ in 0..10_000 {
            let mut high = 0.5;
            let values: Vec<Option<f64>> = (0..rng.usize(1..80))
                .map(|_| {
                    if rng.f64() < 0.08 {
                        high = rng.f64();
                    }
                    (rng.f64() < 0.95).then(|| if rng.f64() < high { 6.0 } else { 5.0 })
                })
                .collect();
            let mut is_raised = false;
            let raised: Vec<bool> = changes(&RULE, &values)
                .chars()
                .map(|change| {
                    is_raised = change == '+' || is_raised && change != '-';
                    is_raised
                })
                .collect();

            assert_eq!(raised, model(&RULE, &values), "{values:?}");
            for is in raised {
                seen[usize::from(is)] += 1;
            }
        }
        assert!(seen.iter().all(|times| *times > 50_000), "{seen:?}");
    }

    #[test]
    fn alerts_of_different_pools_are_different_ones_and_say_their_number() {
        let mut watch = Watch::default();
        for at in [0, 10] {
            let at = Duration::from_secs(at);
            for (pool, value) in [("a", 6.0), ("b\n\"", 7.0), ("c", 5.0)] {
                watch.take(&RULE, Some(pool), at, SystemTime::UNIX_EPOCH + at, Some(value));
            }
        }

        let said: Vec<String> = watch.alerts().iter().map(ToString::to_string).collect();
        assert_eq!(said, ["WARNING: 6 of it (a)", r#"WARNING: 7 of it (b\n\")"#]);
    }
}
