//! What is said of notifications that cannot be read, and how often.

use std::time::Duration;

use tokio::time::Instant;

use crate::Channel;

/// The shortest time between two lines of the log about one kind.
const LOG_PACE: Duration = Duration::from_mins(1);

/// What came and could not be read, by its kind. The log is told of the first one, and later of how many came since.
#[derive(Debug, Default)]
pub(crate) struct Unreadable([Kind; 2]);

/// What is known of the notifications of a kind.
#[derive(Debug, Default, Clone, Copy)]
struct Kind {
    /// When the log was last told of them.
    said: Option<Instant>,
    /// How many came since then.
    unsaid: u64,
}

/// What the kinds are, in their order.
const NAMES: [&str; 2] = ["not a bus's", "of another version"];

impl Unreadable {
    /// A payload came that cannot be read.
    pub(crate) fn came(&mut self, payload: &str, now: Instant, channel: &Channel) {
        // Each version begins with its number.
        let kind = usize::from(payload.starts_with(|first: char| first.is_ascii_digit()));
        self.0[kind].unsaid += 1;
        self.tell(now, channel);
    }

    /// Tells the log what it is to be told now.
    pub(crate) fn tell(&mut self, now: Instant, channel: &Channel) {
        for (kind, name) in self.0.iter_mut().zip(NAMES) {
            if let Some(count) = kind.due(now) {
                tracing::warn!(%channel, kind = name, count, "notifications of a form that is not known here");
            }
        }
    }
}

impl Kind {
    /// How many the log is to be told of now, if it is.
    fn due(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.unsaid > 0 && self.said.is_none_or(|said| now >= said + LOG_PACE);
        is_due.then(|| {
            self.said = Some(now);
            std::mem::take(&mut self.unsaid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_others_are_counted_later() {
        let (mut kind, start) = (Kind::default(), Instant::now());
        assert_eq!(kind.due(start), None, "nothing came");

        kind.unsaid += 1;
        assert_eq!(kind.due(start), Some(1));
        kind.unsaid += 28_809;
        assert_eq!(kind.due(start + LOG_PACE / 2), None);
        assert_eq!(kind.due(start + LOG_PACE), Some(28_809));
        assert_eq!(kind.due(start + LOG_PACE * 9), None, "no more came");
    }
}
