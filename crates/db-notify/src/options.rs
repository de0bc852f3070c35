//! How a bus listens and sends.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::Channel;

/// How a bus listens and sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusOptions {
    /// Processes hear each other within a namespace, `default` by default. It becomes part of a channel's name: at most 53
    /// bytes, no NUL.
    pub namespace: String,
    /// How often the server is asked for a sign of life by the listening connection [15 s]. The server is told to do the same
    /// with its end of both connections, after a silence of that length.
    pub heartbeat: Duration,
    /// How long an answer may take, to a heartbeat and to a statement that notifies, before the connection counts as lost [2 s].
    pub answer: Duration,
    /// The shortest time between two statements that notify [2 ms]. After one that stands for many calls it is longer, up to four
    /// times: the busier those who write, the dearer it is to them that everybody who listens is woken.
    pub pace: Duration,
    /// The most notifications that wait to be sent [10 000]: from 1 000 to 1 000 000, or 0 for the default. Past it, one message
    /// says "everything".
    pub queue: usize,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            heartbeat: Duration::from_secs(15),
            answer: Duration::from_secs(2),
            pace: Duration::from_millis(2),
            queue: Self::QUEUE,
        }
    }
}

/// What is wrong with a bus's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusOptionsError {
    /// `LISTEN` silently cuts a channel's name at 63 bytes, and `pg_notify` refuses it.
    #[error("the namespace of a bus has 1 to 53 bytes and no NUL character")]
    Namespace,
    /// The queue is too small or too large.
    #[error("the queue of a bus holds 1000 to 1000000 notifications, or 0 for 10000, and not {0}")]
    Queue(usize),
    /// A time is none, or as good as for ever.
    #[error("the {0} of a bus must be longer than nothing, and a day at most")]
    Time(&'static str),
}

/// Whoever wants a time to be for ever says less than that.
pub(crate) const DAY: Duration = Duration::from_hours(24);

impl BusOptions {
    const QUEUE: usize = 10_000;
    pub(crate) const QUEUES: RangeInclusive<usize> = 1_000..=1_000_000;

    /// The one channel of the namespace, if all options are good.
    pub(crate) fn check(&self) -> Result<Channel, BusOptionsError> {
        for (name, time) in [("heartbeat", self.heartbeat), ("answer", self.answer)] {
            if time.is_zero() || time > DAY {
                return Err(BusOptionsError::Time(name));
            }
        }
        // Without any, it sends as fast as it can.
        if self.pace > DAY {
            return Err(BusOptionsError::Time("pace"));
        }
        if self.queue != 0 && !Self::QUEUES.contains(&self.queue) {
            return Err(BusOptionsError::Queue(self.queue));
        }
        if self.namespace.is_empty() {
            return Err(BusOptionsError::Namespace);
        }
        Channel::new(format!("db_notify.{}", self.namespace)).map_err(|_| BusOptionsError::Namespace)
    }

    pub(crate) fn queue(&self) -> usize {
        if self.queue == 0 { Self::QUEUE } else { self.queue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_holds_a_thousand_to_a_million_or_what_is_usual() {
        let of = |queue| BusOptions { queue, ..BusOptions::default() };
        for bad in [1, 999, 1_000_001, usize::MAX] {
            assert_eq!(of(bad).check(), Err(BusOptionsError::Queue(bad)));
        }
        for (good, holds) in [(0, 10_000), (1_000, 1_000), (1_000_000, 1_000_000)] {
            let options = of(good);
            assert!(options.check().is_ok());
            assert_eq!(options.queue(), holds);
        }
    }

    #[test]
    fn a_namespace_fits_into_a_channels_name() {
        let of = |namespace: &str| BusOptions { namespace: namespace.to_owned(), ..BusOptions::default() };
        for bad in ["", "a\0b", &"x".repeat(54)] {
            assert_eq!(of(bad).check(), Err(BusOptionsError::Namespace));
        }
        let longest = of(&"x".repeat(53)).check().expect("a channel");
        assert_eq!(longest.as_str().len(), Channel::MAX_BYTES);
    }

    #[test]
    fn no_time_is_not_a_time_and_neither_is_for_ever() {
        for bad in [Duration::ZERO, Duration::MAX] {
            let heartbeat = BusOptions { heartbeat: bad, ..BusOptions::default() };
            assert_eq!(heartbeat.check(), Err(BusOptionsError::Time("heartbeat")));
            let answer = BusOptions { answer: bad, ..BusOptions::default() };
            assert_eq!(answer.check(), Err(BusOptionsError::Time("answer")));
        }
        let pace = BusOptions { pace: Duration::MAX, ..BusOptions::default() };
        assert_eq!(pace.check(), Err(BusOptionsError::Time("pace")));
    }
}
