//! When this process announces the topics that it watches, and when an announcement was late. No clock and no I/O: the caller
//! passes the time and the jitter, sends what the announcer returns, and reports each delivery.
//!
//! ```text
//!   began, ended                     timer, or a gap
//!        │                                  │
//!        ▼                                  ▼
//!     changes                             renew
//!  (one in flight)                   (one in flight)
//!        └────────────► delivered ◄─────────┘
//!                           │
//!                           ▼
//!            late: gap for the local watchers
//! ```

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::marks::Marks;
use crate::{GapReason, Topic};

/// The two kinds of announcements. At most one of each kind is in flight: while the server is away, more would not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    /// The topics whose first watch began or whose last watch ended.
    Changes,
    /// All topics that are watched in this process.
    Renewal,
}

/// The topics of an announcement of changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Topics that are watched now.
    pub(super) began: Vec<Topic>,
    /// Topics that are watched no longer.
    pub(super) ended: Vec<Topic>,
}

#[derive(Debug)]
pub(super) struct Announcer {
    renewal: Duration,
    /// Topics that changed since the last announcement of changes was composed.
    changed: HashSet<Topic>,
    /// When the oldest watch among `changed` began.
    oldest: Option<Instant>,
    /// For the announcement of changes in flight: since when other processes lacked its topics.
    changes_in_flight: Option<Instant>,
    /// For the renewal in flight: when it was composed.
    renewal_in_flight: Option<Instant>,
    /// When the last delivered renewal was composed.
    renewed: Instant,
    due: Instant,
    /// When the local watchers last received a gap.
    last_gap: Instant,
}

impl Announcer {
    pub(super) fn new(renewal: Duration, now: Instant) -> Self {
        Self {
            renewal,
            changed: HashSet::new(),
            oldest: None,
            changes_in_flight: None,
            renewal_in_flight: None,
            renewed: now,
            due: now,
            last_gap: now,
        }
    }

    /// Announcements are sent from now on. Other processes lack nothing that was composed before.
    pub(super) fn start(&mut self, now: Instant, jitter: f64) {
        (self.renewed, self.last_gap) = (now, now);
        self.schedule(now, jitter);
    }

    /// The first watch of a topic began.
    pub(super) fn began(&mut self, topic: &Topic, now: Instant) {
        self.changed.insert(topic.clone());
        self.oldest.get_or_insert(now);
    }

    /// The last watch of a topic ended.
    pub(super) fn ended(&mut self, topic: &Topic) {
        self.changed.insert(topic.clone());
    }

    /// The changes to announce now. `None` if nothing has changed, or while an announcement of changes is in flight: its
    /// delivery is the time to ask again.
    pub(super) fn changes(&mut self, marks: &Marks, now: Instant) -> Option<Changes> {
        if self.changed.is_empty() || self.changes_in_flight.is_some() {
            return None;
        }
        self.changes_in_flight = Some(self.oldest.take().unwrap_or(now));
        let changed = std::mem::take(&mut self.changed);
        let (began, ended) = changed.into_iter().partition(|topic| marks.watches(topic));
        Some(Changes { began, ended })
    }

    /// When the next renewal is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether a renewal follows a gap, because the marks of this process may have expired. No renewal follows `Overflow` and
    /// `Unreadable`: if an announcement of this process caused the gap, renewals and gaps would follow each other without end.
    pub(super) fn renews_after(reason: GapReason) -> bool {
        !matches!(reason, GapReason::Overflow | GapReason::Unreadable)
    }

    /// Schedules the next renewal, and returns the topics to announce now. `None` if no topic is watched, or while a renewal is
    /// in flight.
    pub(super) fn renew(&mut self, marks: &Marks, now: Instant, jitter: f64) -> Option<Vec<Topic>> {
        self.schedule(now, jitter);
        if self.renewal_in_flight.is_some() {
            return None;
        }
        let topics: Vec<Topic> = marks.own().cloned().collect();
        if topics.is_empty() {
            self.renewed = now;
            return None;
        }
        self.renewal_in_flight = Some(now);
        Some(topics)
    }

    /// An announcement was delivered. Returns whether it was late, in which case the local watchers are to be told of a gap: other
    /// processes may have dropped notifications and have forgotten them.
    #[must_use]
    pub(super) fn delivered(&mut self, what: Announced, now: Instant) -> bool {
        let lacked_since = match what {
            Announced::Changes => self.changes_in_flight.take(),
            Announced::Renewal => {
                let before = self.renewed;
                self.renewal_in_flight.take().map(|composed| {
                    self.renewed = composed;
                    before
                })
            }
        };
        let Some(lacked_since) = lacked_since else { return false };
        // A mark lasts for three renewals, and a dropped notification is remembered for more than two. After the last gap the
        // watchers have read the data again.
        let is_late = now.duration_since(lacked_since.max(self.last_gap)) > self.renewal * 2;
        if is_late {
            self.last_gap = now;
        }
        is_late
    }

    /// `jitter` is from 0 to 1. The interval is shorter than a renewal, so that two fit into the time of doubt, and random, so
    /// that processes do not announce at the same time.
    fn schedule(&mut self, now: Instant, jitter: f64) {
        self.due = now + self.renewal.mul_f64(jitter.mul_add(0.2, 0.7));
    }
}

#[cfg(test)]
mod tests {
    use super::super::marks::Spans;
    use super::*;

    const RENEWAL: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_nanos(1);

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    /// An announcer and the marks of its process.
    struct Process {
        announcer: Announcer,
        marks: Marks,
        now: Instant,
    }

    impl Process {
        fn new() -> Self {
            let now = Instant::now();
            let spans = Spans { mark: RENEWAL * 3, doubt: RENEWAL * 2, memory: RENEWAL * 2, remembered: 10 };
            let mut announcer = Announcer::new(RENEWAL, now);
            announcer.start(now, 0.0);
            Self { announcer, marks: Marks::new(spans, now), now }
        }

        fn watch(&mut self, name: &str) {
            assert!(self.marks.watch(&topic(name)), "the first watch of {name}");
            self.announcer.began(&topic(name), self.now);
        }

        fn unwatch(&mut self, name: &str) {
            assert!(self.marks.unwatch(&topic(name)), "the last watch of {name}");
            self.announcer.ended(&topic(name));
        }

        fn changes(&mut self) -> Option<Changes> {
            self.announcer.changes(&self.marks, self.now)
        }

        fn renew(&mut self) -> Option<Vec<Topic>> {
            self.announcer.renew(&self.marks, self.now, 0.0)
        }

        fn delivered(&mut self, what: Announced) -> bool {
            self.announcer.delivered(what, self.now)
        }
    }

    fn began(names: &[&str]) -> Changes {
        Changes { began: names.iter().map(|name| topic(name)).collect(), ended: Vec::new() }
    }

    #[test]
    fn a_change_is_announced_once() {
        let mut process = Process::new();
        assert_eq!(process.changes(), None, "nothing has changed");

        process.watch("a");

        assert_eq!(process.changes(), Some(began(&["a"])));
        assert!(!process.delivered(Announced::Changes));
        assert_eq!(process.changes(), None);
    }

    #[test]
    fn changes_wait_for_the_announcement_in_flight_and_are_announced_together() {
        let mut process = Process::new();
        process.watch("a");
        assert!(process.changes().is_some());

        process.watch("b");
        process.watch("c");
        assert_eq!(process.changes(), None);
        assert!(!process.delivered(Announced::Changes));

        let mut together = process.changes().expect("two topics");
        together.began.sort();
        assert_eq!(together, began(&["b", "c"]));
    }

    #[test]
    fn a_topic_is_announced_as_it_is_when_the_announcement_is_composed() {
        let mut process = Process::new();
        process.watch("kept");
        process.unwatch("kept");
        process.watch("kept");
        process.watch("given up");
        process.unwatch("given up");

        let changes = process.changes();

        assert_eq!(changes, Some(Changes { began: vec![topic("kept")], ended: vec![topic("given up")] }));
    }

    #[test]
    fn a_renewal_is_due_after_70_to_90_percent_of_the_interval() {
        let mut process = Process::new();
        assert_eq!(process.announcer.due(), process.now + RENEWAL.mul_f64(0.7));

        for (jitter, share) in [(0.0, 0.7), (1.0, 0.9)] {
            process.now += RENEWAL;
            process.announcer.renew(&process.marks, process.now, jitter);
            assert_eq!(process.announcer.due(), process.now + RENEWAL.mul_f64(share), "{jitter}");
        }
    }

    #[test]
    fn a_renewal_has_all_watched_topics_and_one_is_in_flight() {
        let mut process = Process::new();
        assert_eq!(process.renew(), None, "no topic is watched");
        process.watch("a");

        assert_eq!(process.renew(), Some(vec![topic("a")]));
        process.now += RENEWAL;
        assert_eq!(process.renew(), None, "one is in flight");
        assert!(process.announcer.due() > process.now, "the next one is scheduled all the same");
        assert!(!process.delivered(Announced::Renewal));
        assert_eq!(process.renew(), Some(vec![topic("a")]));
    }

    #[test]
    fn a_renewal_in_flight_does_not_delay_changes() {
        let mut process = Process::new();
        process.watch("a");
        assert!(process.renew().is_some());

        assert_eq!(process.changes(), Some(began(&["a"])));
    }

    #[test]
    fn changes_are_late_more_than_two_renewals_after_the_oldest_watch() {
        for (after, is_late) in [(RENEWAL * 2, false), (RENEWAL * 2 + MOMENT, true)] {
            let mut process = Process::new();
            process.watch("a");
            let begun = process.now;
            process.now += RENEWAL;
            process.watch("b");
            assert!(process.changes().is_some());

            process.now = begun + after;

            assert_eq!(process.delivered(Announced::Changes), is_late, "{after:?}");
        }
    }

    #[test]
    fn the_end_of_a_watch_counts_from_its_announcement() {
        let mut process = Process::new();
        process.watch("a");
        assert!(process.changes().is_some());
        assert!(!process.delivered(Announced::Changes));
        process.unwatch("a");
        process.now += RENEWAL * 3;
        assert!(process.changes().is_some());

        process.now += RENEWAL * 2;

        assert!(!process.delivered(Announced::Changes), "nobody lacks the end of a watch");
    }

    #[test]
    fn a_renewal_is_late_more_than_two_renewals_after_the_one_before_was_composed() {
        for (after, is_late) in [(RENEWAL * 2, false), (RENEWAL * 2 + MOMENT, true)] {
            let mut process = Process::new();
            process.watch("a");
            process.now += RENEWAL;
            let composed = process.now;
            assert!(process.renew().is_some());
            process.now += RENEWAL;
            assert!(!process.delivered(Announced::Renewal));
            assert!(process.renew().is_some());

            process.now = composed + after;

            assert_eq!(process.delivered(Announced::Renewal), is_late, "{after:?}");
        }
    }

    #[test]
    fn while_no_topic_is_watched_no_renewal_is_late() {
        let mut process = Process::new();
        process.now += RENEWAL * 10;
        assert_eq!(process.renew(), None);
        process.watch("a");
        assert!(process.renew().is_some());

        process.now += RENEWAL;

        assert!(!process.delivered(Announced::Renewal));
    }

    #[test]
    fn two_late_announcements_cause_one_gap() {
        let mut process = Process::new();
        process.watch("a");
        assert!(process.changes().is_some() && process.renew().is_some());
        process.now += RENEWAL * 10;

        assert!(process.delivered(Announced::Changes));
        assert!(!process.delivered(Announced::Renewal), "the watchers looked a moment ago");

        assert!(process.renew().is_some());
        process.now += RENEWAL * 2 + MOMENT;
        assert!(process.delivered(Announced::Renewal), "and this is another time");
    }

    #[test]
    fn an_announcement_composed_before_the_start_is_not_late() {
        let mut process = Process::new();
        process.watch("a");
        process.now += RENEWAL * 10;
        process.announcer.start(process.now, 0.0);
        assert!(process.changes().is_some());

        process.now += RENEWAL;

        assert!(!process.delivered(Announced::Changes));
    }

    #[test]
    fn a_renewal_follows_a_lost_link_and_not_an_overflow() {
        for reason in [GapReason::Reconnected, GapReason::Started, GapReason::Lagged] {
            assert!(Announcer::renews_after(reason), "{reason:?}");
        }
        for reason in [GapReason::Overflow, GapReason::Unreadable] {
            assert!(!Announcer::renews_after(reason), "{reason:?}");
        }
    }
}
