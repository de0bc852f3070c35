//! How a bus stands, for health checks and for tests.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sqlx::error::DatabaseError;

/// How a bus stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BusState {
    /// Since when LISTEN is in force without a break; none while it is not. On a lazy bus it is not before somebody has
    /// subscribed.
    pub connected_since: Option<SystemTime>,
    /// When the server last gave a sign of life because it was asked for one.
    pub last_heartbeat: Option<SystemTime>,
    /// What keeps the bus from listening or from sending, as far as it has been met.
    pub trouble: Option<Trouble>,
    /// How full the server's queue of notifications was at the last heartbeat, from 0 to 1. When it is full, NOTIFY fails, and
    /// with it any transaction that has one: some session listens, and has been in a transaction for too long.
    pub queue_usage: Option<f64>,
    /// Topics that somebody in this process subscribes to.
    pub topics: usize,
    /// Channels of other programs' that somebody in this process listens to.
    pub channels: usize,
    /// Subscriptions in this process.
    pub subscribers: usize,
    /// Notifications that wait to be sent.
    pub pending: usize,
    /// Notifications that were sent.
    pub sent: u64,
    /// Notifications that were not sent, because an equal one was waiting, or a message that says "everything".
    pub coalesced: u64,
    /// Notifications that were not sent, because nobody watched their topic ([`WatchedTopics`](crate::WatchedTopics)).
    pub gated: u64,
    /// How often everybody was told of a gap.
    pub gaps: u64,
    /// Notifications that did not fit into the queue of a subscriber.
    pub lagged: u64,
}

impl BusState {
    /// Whether LISTEN is in force.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected_since.is_some()
    }
}

/// What keeps a bus from listening or from sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trouble {
    /// No session can be opened: the server is away, or refuses it.
    Unreachable,
    /// The server is a standby, which can neither LISTEN nor NOTIFY (SQLSTATE 25006). It is tried again, since a standby may be
    /// promoted.
    Standby,
    /// LISTEN is answered, and nothing arrives: a pooler such as `PgBouncer` in transaction mode is in between.
    NothingDelivered,
    /// The server's queue of notifications is nearly full, or full (SQLSTATE 54000).
    QueueFull,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the server is not reached",
            Self::Standby => {
                "the server is a standby, which can neither LISTEN nor NOTIFY: use the address of the primary, or promote it"
            }
            Self::NothingDelivered => {
                "LISTEN is answered, and nothing arrives: a pooler such as PgBouncer in transaction mode seems to be in between, \
                 so use the server's own address (DATABASE_URL_DIRECT)"
            }
            Self::QueueFull => {
                "the server's queue of notifications is nearly full: look for sessions that LISTEN and are in a transaction \
                 (pg_stat_activity.xact_start), and end them"
            }
        })
    }
}

impl Trouble {
    /// What an error of a session says about the place.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(DatabaseError::code);
        match code.as_deref() {
            Some("25006") => Self::Standby,
            Some("54000") => Self::QueueFull,
            _ => Self::Unreachable,
        }
    }
}

/// What is counted, each by one owner: the notifier, the listening task, the subscribers' queues, the gate.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) gated: Counter,
    pub(crate) gaps: Counter,
    pub(crate) lagged: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How the two sessions are.
#[derive(Debug, Default)]
pub(crate) struct Condition(Mutex<Sessions>);

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sessions {
    pub(crate) connected_since: Option<SystemTime>,
    pub(crate) last_heartbeat: Option<SystemTime>,
    pub(crate) queue_usage: Option<f64>,
    listening: Option<Trouble>,
    sending: Option<Trouble>,
    queue: Option<Trouble>,
}

/// Where trouble is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Listening,
    Sending,
    Queue,
}

impl Sessions {
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.listening.or(self.sending).or(self.queue)
    }

    fn part(&mut self, part: Part) -> &mut Option<Trouble> {
        match part {
            Part::Listening => &mut self.listening,
            Part::Sending => &mut self.sending,
            Part::Queue => &mut self.queue,
        }
    }
}

impl Condition {
    pub(crate) fn read(&self) -> Sessions {
        *self.lock()
    }

    pub(crate) fn connected(&self) {
        self.lock().connected_since = Some(SystemTime::now());
    }

    pub(crate) fn lost(&self) {
        self.lock().connected_since = None;
    }

    pub(crate) fn heard(&self, usage: Option<f64>) {
        let mut sessions = self.lock();
        sessions.last_heartbeat = Some(SystemTime::now());
        sessions.queue_usage = usage;
    }

    /// Notes what is met, or that it is over; tells whether that is new. What lasts is said once.
    pub(crate) fn note(&self, part: Part, trouble: Option<Trouble>) -> bool {
        let mut sessions = self.lock();
        std::mem::replace(sessions.part(part), trouble) != trouble
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_new_once_and_so_is_its_end() {
        let condition = Condition::default();
        assert!(!condition.note(Part::Sending, None), "nothing was wrong");

        assert!(condition.note(Part::Sending, Some(Trouble::Unreachable)));
        assert!(!condition.note(Part::Sending, Some(Trouble::Unreachable)), "it lasts");
        assert!(condition.note(Part::Sending, Some(Trouble::Standby)), "another one");
        assert_eq!(condition.read().trouble(), Some(Trouble::Standby));

        assert!(condition.note(Part::Sending, None));
        assert_eq!(condition.read().trouble(), None);
    }

    #[test]
    fn what_keeps_it_from_listening_is_told_first_and_the_queue_last() {
        let condition = Condition::default();
        for (part, trouble) in [
            (Part::Queue, Trouble::QueueFull),
            (Part::Sending, Trouble::Standby),
            (Part::Listening, Trouble::NothingDelivered),
        ] {
            condition.note(part, Some(trouble));
            assert_eq!(condition.read().trouble(), Some(trouble));
        }
    }
}
