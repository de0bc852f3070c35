//! What a subscription delivers.

use std::fmt;
use std::sync::Arc;

use crate::{Channel, Topic};

/// A delivery of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// A topic or a channel was notified.
    Notification(Notification),
    /// Notifications may have been missed before this point: read the data again.
    Gap(Gap),
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub(crate) source: NotificationSource,
    /// `None` if the payload is empty.
    pub(crate) payload: Option<Arc<str>>,
}

/// What was notified: a topic or a channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NotificationSource {
    /// A topic of the bus.
    Topic(Topic),
    /// A channel of PostgreSQL, notified by a trigger or another program.
    Channel(Channel),
}

impl Notification {
    /// The topic or channel that was notified.
    #[must_use]
    pub fn source(&self) -> &NotificationSource {
        &self.source
    }

    /// The topic that was notified. `None` if a channel was notified.
    #[must_use]
    pub fn topic(&self) -> Option<&Topic> {
        match &self.source {
            NotificationSource::Topic(topic) => Some(topic),
            NotificationSource::Channel(_) => None,
        }
    }

    /// The payload, which is often empty.
    #[must_use]
    pub fn payload(&self) -> &str {
        self.payload.as_deref().unwrap_or_default()
    }
}

/// A place in a subscription where notifications may have been missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// How many notifications were missed, if the bus knows.
    pub missed: Option<u64>,
}

/// Why notifications may have been missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// The listening session was lost. LISTEN is in force again.
    Reconnected,
    /// LISTEN came into force after the subscription was made: a lazy bus had to connect first, or the subscription is to a
    /// [channel](crate::Bus::listen).
    Started,
    /// The queue of the subscription was full.
    Lagged,
    /// The queue of a sending bus was full, or the encoding of the database lacks a character of a notification.
    Overflow,
    /// A notification on the channel of the bus had an unknown form.
    Unreadable,
    /// This process announced late that it [watches](crate::WatchedTopics) the topic: other processes may have dropped notifications
    /// of it. They know of the watch now.
    Unannounced,
}

impl GapReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Reconnected, Self::Started, Self::Lagged, Self::Overflow, Self::Unreadable, Self::Unannounced];

    /// The reason in one word, as it is counted: `reconnected`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reconnected => "reconnected",
            Self::Started => "started",
            Self::Lagged => "lagged",
            Self::Overflow => "overflow",
            Self::Unreadable => "unreadable",
            Self::Unannounced => "unannounced",
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            GapReason::Reconnected => "the listening session was lost",
            GapReason::Started => "LISTEN was not in force yet",
            GapReason::Lagged => "the queue was full",
            GapReason::Overflow => "a sender's queue was full",
            GapReason::Unreadable => "a notification had an unknown form",
            GapReason::Unannounced => "other processes did not know that the topic is watched",
        })?;
        match self.missed {
            Some(missed) => write!(f, ", {missed} missed"),
            None => Ok(()),
        }
    }
}
