//! What a subscriber receives.

use std::fmt;

use crate::Topic;

/// One thing that a subscription delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Somebody notified.
    Notification(Notification),
    /// Something may have been missed before this point: look again.
    Gap(Gap),
}

/// A notification, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub(crate) topic: Topic,
    pub(crate) payload: String,
}

impl Notification {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What was sent with it, often nothing.
    #[must_use]
    pub fn payload(&self) -> &str {
        &self.payload
    }
}

/// Notifications that may have been missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// How many notifications are missing, where that is known.
    pub missed: Option<u64>,
}

/// Why notifications may have been missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The link to the server was down. LISTEN is in force again.
    Reconnected,
    /// LISTEN came into force after the subscription: the bus is a lazy one, and had to connect first.
    Started,
    /// The subscriber's queue was full.
    Lagged,
    /// A sender had more to say than its queue holds.
    Overflow,
    /// A notification came in a form that is not known here.
    Unreadable,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            GapReason::Reconnected => "the link was down",
            GapReason::Started => "the bus was not listening yet",
            GapReason::Lagged => "the queue was full",
            GapReason::Overflow => "a sender's queue was full",
            GapReason::Unreadable => "a notification could not be read",
        })?;
        match self.missed {
            Some(missed) => write!(f, ", {missed} missed"),
            None => Ok(()),
        }
    }
}
