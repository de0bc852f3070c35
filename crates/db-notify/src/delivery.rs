//! What a subscriber receives.

use std::fmt;
use std::sync::Arc;

use crate::{Channel, Topic};

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
    pub(crate) source: NotificationSource,
    /// None if there is nothing in it.
    pub(crate) payload: Option<Arc<str>>,
}

/// What was notified.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NotificationSource {
    /// A topic of the bus's.
    Topic(Topic),
    /// A channel of PostgreSQL's, by a trigger or another program.
    Channel(Channel),
}

impl Notification {
    /// What was notified: a topic, or a channel.
    #[must_use]
    pub fn source(&self) -> &NotificationSource {
        &self.source
    }

    /// The topic; none if it was a channel that was notified.
    #[must_use]
    pub fn topic(&self) -> Option<&Topic> {
        match &self.source {
            NotificationSource::Topic(topic) => Some(topic),
            NotificationSource::Channel(_) => None,
        }
    }

    /// What was sent with it, often nothing.
    #[must_use]
    pub fn payload(&self) -> &str {
        self.payload.as_deref().unwrap_or_default()
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
    /// LISTEN came into force after the subscription: the bus is a lazy one, and had to connect first, or a
    /// [channel](crate::Bus::listen) of its own was asked for.
    Started,
    /// The subscriber's queue was full.
    Lagged,
    /// A sender had more to say than its queue holds, or what the database's encoding has no characters for.
    Overflow,
    /// A notification came in a form that is not known here.
    Unreadable,
    /// It took too long to tell other processes that the topic is [watched](crate::WatchedTopics): they may have notified of
    /// it in vain. They know it now.
    Unannounced,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            GapReason::Reconnected => "the link was down",
            GapReason::Started => "LISTEN was not in force yet",
            GapReason::Lagged => "the queue was full",
            GapReason::Overflow => "a sender's queue was full",
            GapReason::Unreadable => "a notification could not be read",
            GapReason::Unannounced => "others did not know that the topic is watched",
        })?;
        match self.missed {
            Some(missed) => write!(f, ", {missed} missed"),
            None => Ok(()),
        }
    }
}
