//! The state of a bus, for health checks and for tests.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use db_core::Observers;

use crate::{Gap, GapReason, Observer, class};

/// The state of a bus at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BusState {
    /// Since when LISTEN is in force without a break. `None` while it is not in force; on a lazy bus, before the first subscription.
    pub connected_since: Option<SystemTime>,
    /// When the server last answered a heartbeat.
    pub last_heartbeat: Option<SystemTime>,
    /// What keeps the bus from listening or from sending, as far as the bus knows.
    pub trouble: Option<Trouble>,
    /// The usage of the server's queue of notifications at the last heartbeat, from 0 to 1. When the queue is full, NOTIFY fails, and
    /// so do transactions with a NOTIFY. The cause is a listening session with a long transaction.
    pub queue_usage: Option<f64>,
    /// Topics with a subscription in this process.
    pub topics: usize,
    /// [Channels](crate::Bus::listen) with a subscription in this process.
    pub channels: usize,
    /// Subscriptions in this process.
    pub subscribers: usize,
    /// Notifications that wait to be sent.
    pub pending: usize,
    /// Notifications that were sent.
    pub sent: u64,
    /// Notifications that were not sent, because an equal one or the message "everything" was waiting.
    pub coalesced: u64,
    /// Notifications that were not sent, because no process watched their topic ([`WatchedTopics`](crate::WatchedTopics)).
    pub gated: u64,
    /// Gaps that all subscriptions of this process received.
    pub gaps: u64,
    /// Gaps that each subscription of this process received, by reason: a gap for all counts once for each.
    pub received_gaps: GapTotals,
    /// Notifications that did not fit into the queue of a subscription.
    pub lagged: u64,
}

impl BusState {
    /// Whether LISTEN is in force.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected_since.is_some()
    }
}

/// Gaps, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct GapTotals([u64; GapReason::ALL.len()]);

impl GapTotals {
    /// Those of one reason.
    #[must_use]
    pub const fn of(self, reason: GapReason) -> u64 {
        self.0[reason as usize]
    }
}

impl fmt::Debug for GapTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(GapReason::ALL.map(|reason| (reason, self.of(reason)))).finish()
    }
}

/// What keeps a bus from listening or from sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trouble {
    /// No session can be opened: the server is away, or refuses the session.
    Unreachable,
    /// The server is a standby, which allows neither LISTEN nor NOTIFY (SQLSTATE 25006). The bus retries, since a standby may be
    /// promoted.
    Standby,
    /// LISTEN succeeds and delivers nothing: the address leads through a pooler in transaction mode, such as `PgBouncer`.
    NothingDelivered,
    /// The server's queue of notifications is at least half full, or full (SQLSTATE 54000).
    QueueFull,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the server cannot be reached",
            Self::Standby => {
                "the server is a standby, which allows neither LISTEN nor NOTIFY: use the address of the primary, or promote the \
                 standby"
            }
            Self::NothingDelivered => {
                "LISTEN succeeds and delivers nothing: the address seems to lead through a pooler in transaction mode, such as \
                 PgBouncer, so set DATABASE_URL_DIRECT to the address of the server itself"
            }
            Self::QueueFull => {
                "the server's queue of notifications is at least half full: find the listening sessions with a long transaction \
                 (pg_stat_activity.xact_start), and end them"
            }
        })
    }
}

impl Trouble {
    /// What an error of a session means.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        if class::is_read_only(error) {
            Self::Standby
        } else if class::is_queue_full(error) {
            Self::QueueFull
        } else {
            Self::Unreachable
        }
    }
}

/// The totals, and those who hear of them. Each has one owner, which counts it: the notifier, the outbox, the map of watched topics, the
/// listening task, the queues of subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) observers: Observers<dyn Observer>,
    pub(crate) received_gaps: [Counter; GapReason::ALL.len()],
    pub(crate) sent: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) gated: Counter,
    pub(crate) gaps: Counter,
    pub(crate) lagged: Counter,
}

impl Counters {
    /// A subscription received a gap. No lock may be held.
    pub(crate) fn received(&self, gap: Gap) {
        self.received_gaps[gap.reason as usize].add(1);
        self.observers.report(|observer| observer.gap(gap));
    }

    pub(crate) fn received_gaps(&self) -> GapTotals {
        GapTotals(self.received_gaps.each_ref().map(Counter::get))
    }
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

/// The condition of the two sessions.
#[derive(Debug, Default)]
pub(crate) struct Condition(Mutex<ConditionState>);

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConditionState {
    pub(crate) connected_since: Option<SystemTime>,
    pub(crate) last_heartbeat: Option<SystemTime>,
    pub(crate) queue_usage: Option<f64>,
    listening: Option<Trouble>,
    sending: Option<Trouble>,
    queue: Option<Trouble>,
}

/// The parts of a bus that may be in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Listening,
    Sending,
    Queue,
}

impl ConditionState {
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
    pub(crate) fn read(&self) -> ConditionState {
        *self.lock()
    }

    #[expect(clippy::disallowed_methods, reason = "it is shown")]
    pub(crate) fn connected(&self) {
        self.lock().connected_since = Some(SystemTime::now());
    }

    pub(crate) fn lost(&self) {
        self.lock().connected_since = None;
    }

    /// The server answered a heartbeat.
    #[expect(clippy::disallowed_methods, reason = "it is shown")]
    pub(crate) fn heartbeat(&self, usage: Option<f64>) {
        let mut sessions = self.lock();
        sessions.last_heartbeat = Some(SystemTime::now());
        sessions.queue_usage = usage;
    }

    /// Notes the trouble of a part, or its end. Returns whether this is a change, which is to be logged.
    pub(crate) fn note(&self, part: Part, trouble: Option<Trouble>) -> bool {
        let mut sessions = self.lock();
        std::mem::replace(sessions.part(part), trouble) != trouble
    }

    fn lock(&self) -> MutexGuard<'_, ConditionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_a_change_when_it_begins_and_when_it_ends() {
        let condition = Condition::default();
        assert!(!condition.note(Part::Sending, None), "nothing was wrong");

        assert!(condition.note(Part::Sending, Some(Trouble::Unreachable)));
        assert!(!condition.note(Part::Sending, Some(Trouble::Unreachable)), "the same trouble");
        assert!(condition.note(Part::Sending, Some(Trouble::Standby)), "another trouble");
        assert_eq!(condition.read().trouble(), Some(Trouble::Standby));

        assert!(condition.note(Part::Sending, None));
        assert_eq!(condition.read().trouble(), None);
    }

    #[test]
    fn trouble_of_listening_is_shown_before_that_of_sending_and_of_the_queue() {
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
