//! Log lines about notifications that the bus cannot read.

use std::time::Duration;

use tokio::time::Instant;

use crate::Channel;

/// The shortest time between two log lines about one kind.
const LOG_PACE: Duration = Duration::from_mins(1);

/// Counts unreadable notifications, by their kind. Logs the first one of each kind, and later the number since the last line.
#[derive(Debug, Default)]
pub(crate) struct Unreadable([Kind; 2]);

/// The notifications of one kind.
#[derive(Debug, Default, Clone, Copy)]
struct Kind {
    last_logged: Option<Instant>,
    /// How many arrived since then.
    unlogged: u64,
}

/// The names of the kinds, in their order.
const NAMES: [&str; 2] = ["not sent by a bus", "of another version"];

impl Unreadable {
    /// Counts a payload that the bus cannot read.
    pub(crate) fn record(&mut self, payload: &str, now: Instant, channel: &Channel) {
        // A payload of a bus begins with the number of its version.
        let kind = usize::from(payload.starts_with(|first: char| first.is_ascii_digit()));
        self.0[kind].unlogged += 1;
        self.report(now, channel);
    }

    /// Logs what is due.
    pub(crate) fn report(&mut self, now: Instant, channel: &Channel) {
        for (kind, name) in self.0.iter_mut().zip(NAMES) {
            if let Some(count) = kind.due(now) {
                tracing::warn!(
                    %channel, kind = name, count,
                    "notifications on the bus's channel have an unknown form: subscribers were told of a gap. Only buses of this \
                     version may notify this channel"
                );
            }
        }
    }
}

impl Kind {
    /// The number of notifications to log now, if a line is due.
    fn due(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.unlogged > 0 && self.last_logged.is_none_or(|last| now >= last + LOG_PACE);
        is_due.then(|| {
            self.last_logged = Some(now);
            std::mem::take(&mut self.unlogged)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_others_are_counted_later() {
        let (mut kind, start) = (Kind::default(), Instant::now());
        assert_eq!(kind.due(start), None, "nothing arrived");

        kind.unlogged += 1;
        assert_eq!(kind.due(start), Some(1));
        kind.unlogged += 28_809;
        assert_eq!(kind.due(start + LOG_PACE / 2), None);
        assert_eq!(kind.due(start + LOG_PACE), Some(28_809));
        assert_eq!(kind.due(start + LOG_PACE * 9), None, "nothing more arrived");
    }
}
