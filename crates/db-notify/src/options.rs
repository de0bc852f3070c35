//! The options of a bus.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use derive_setters::Setters;

use crate::error::BusOptionsError;
use crate::{Channel, Observer};

/// The options of a bus.
#[derive(Debug, Clone, Setters)]
#[non_exhaustive]
pub struct BusOptions {
    /// The namespace of the topics (default `default`): buses of the same namespace exchange notifications. It becomes part of the name of
    /// a channel: 1 to 53 bytes, no NUL.
    #[setters(into)]
    pub namespace: String,
    /// The interval between two heartbeats of the listening session (default 15 s, at most 1 day). The server pings its ends of both
    /// sessions after a silence of that length.
    pub heartbeat: Duration,
    /// The timeout of the answer to a heartbeat or to a statement that notifies (default 2 s, at most 1 day). After it, the session counts
    /// as lost.
    pub answer: Duration,
    /// The pause after each batch of notifications (default 2 ms, at most 1 day). After a batch of many calls it is up to four times as
    /// long: each statement wakes all listeners, which slows the writers down.
    pub pace: Duration,
    /// The most notifications that wait to be sent: from 1 000 to 1 000 000, or 0 for the default of 10 000. Past that number, one message
    /// "everything" replaces them, and all subscribers receive a gap.
    pub queue: usize,
    #[setters(skip)]
    pub(crate) observers: Vec<Arc<dyn Observer>>,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            heartbeat: Duration::from_secs(15),
            answer: Duration::from_secs(2),
            pace: Duration::from_millis(2),
            queue: Self::QUEUE,
            observers: Vec::new(),
        }
    }
}

/// The channel of a bus is this, and its namespace.
pub(crate) const PREFIX: &str = "db_notify.";

/// Upper bound for any configured duration.
pub(crate) const DAY: Duration = Duration::from_hours(24);

impl BusOptions {
    /// Adds an observer, which hears from the beginning on what happens on the bus. [`Bus::observe`](crate::Bus::observe) adds one to a bus
    /// that runs.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    const QUEUE: usize = 10_000;
    pub(crate) const QUEUES: RangeInclusive<usize> = 1_000..=1_000_000;

    /// The channel of the namespace, if all options are in their ranges.
    pub(crate) fn check(&self) -> Result<Channel, BusOptionsError> {
        for (name, time) in [("heartbeat", self.heartbeat), ("answer", self.answer)] {
            if time.is_zero() || time > DAY {
                return Err(BusOptionsError::Time(name));
            }
        }
        // A pace of zero sends without pauses.
        if self.pace > DAY {
            return Err(BusOptionsError::Time("pace"));
        }
        if self.queue != 0 && !Self::QUEUES.contains(&self.queue) {
            return Err(BusOptionsError::Queue(self.queue));
        }
        if self.namespace.is_empty() {
            return Err(BusOptionsError::Namespace);
        }
        Channel::new(format!("{PREFIX}{}", self.namespace)).map_err(|_| BusOptionsError::Namespace)
    }

    pub(crate) fn queue_limit(&self) -> usize {
        if self.queue == 0 { Self::QUEUE } else { self.queue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_holds_a_thousand_to_a_million_or_the_default() {
        let of = |queue| BusOptions::default().queue(queue);
        for bad in [1, 999, 1_000_001, usize::MAX] {
            assert_eq!(of(bad).check(), Err(BusOptionsError::Queue(bad)));
        }
        for (good, holds) in [(0, 10_000), (1_000, 1_000), (1_000_000, 1_000_000)] {
            let options = of(good);
            assert!(options.check().is_ok());
            assert_eq!(options.queue_limit(), holds);
        }
    }

    #[test]
    fn a_namespace_fits_into_the_name_of_a_channel() {
        let of = |namespace: &str| BusOptions::default().namespace(namespace.to_owned());
        for bad in ["", "a\0b", &"x".repeat(54)] {
            assert_eq!(of(bad).check(), Err(BusOptionsError::Namespace));
        }
        let longest = of(&"x".repeat(53)).check().expect("a channel");
        assert_eq!(longest.as_str().len(), Channel::MAX_BYTES);
    }

    #[test]
    fn a_duration_is_longer_than_nothing_and_at_most_a_day() {
        for bad in [Duration::ZERO, Duration::MAX] {
            let heartbeat = BusOptions::default().heartbeat(bad);
            assert_eq!(heartbeat.check(), Err(BusOptionsError::Time("heartbeat")));
            let answer = BusOptions::default().answer(bad);
            assert_eq!(answer.check(), Err(BusOptionsError::Time("answer")));
        }
        let pace = BusOptions::default().pace(Duration::MAX);
        assert_eq!(pace.check(), Err(BusOptionsError::Time("pace")));
    }
}
