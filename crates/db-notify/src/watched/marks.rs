//! Which process watches which topic, as far as this process knows, and whether a notification is sent. No clock and no I/O: the
//! caller passes the time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::announcement::{Announcement, Node};
use crate::Topic;

/// What to do with a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A process watches the topic, or may watch it.
    Send,
    /// No process watches the topic.
    Drop,
}

/// How long the map relies on what it knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    /// How long a mark lasts after its last renewal.
    pub(super) mark: Duration,
    /// How long the map is in doubt after an announcement may have been missed.
    pub(super) doubt: Duration,
    /// How long a dropped notification is remembered.
    pub(super) memory: Duration,
    /// How many topics with a dropped notification are remembered. Past that number nothing is dropped, since it could not be
    /// recovered.
    pub(super) remembered: usize,
}

/// The marks of all processes.
#[derive(Debug)]
pub(super) struct Marks {
    spans: Spans,
    topics: HashMap<Topic, Vec<Mark>>,
    /// For each node, the number of its last announcement.
    numbers: HashMap<Node, u64>,
    /// For each topic, the watches in this process.
    own: HashMap<Topic, usize>,
    doubt_until: Instant,
    always_in_doubt: bool,
    dropped: Dropped,
}

#[derive(Debug)]
struct Mark {
    node: Node,
    until: Instant,
}

/// Topics with a dropped notification, and the time of the last one.
#[derive(Debug, Default)]
struct Dropped {
    last: HashMap<Topic, Instant>,
    /// In the order of time. A topic that was dropped again is in it more than once.
    order: VecDeque<(Instant, Topic)>,
}

impl Marks {
    pub(super) fn new(spans: Spans, now: Instant) -> Self {
        Self {
            spans,
            topics: HashMap::new(),
            numbers: HashMap::new(),
            own: HashMap::new(),
            doubt_until: now + spans.doubt,
            always_in_doubt: false,
            dropped: Dropped::default(),
        }
    }

    /// Counts a watch of this process. Returns whether it is the first one of the topic, which is to be announced.
    pub(super) fn watch(&mut self, topic: &Topic) -> bool {
        let count = self.own.entry(topic.clone()).or_default();
        *count += 1;
        *count == 1
    }

    /// Takes a watch off the count. Returns whether it was the last one of the topic, which is to be announced.
    pub(super) fn unwatch(&mut self, topic: &Topic) -> bool {
        let Some(count) = self.own.get_mut(topic) else { return false };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.own.remove(topic);
        }
        is_last
    }

    /// Whether a process watches a topic, as far as this process knows.
    pub(super) fn is_watched(&self, topic: &Topic, now: Instant) -> bool {
        self.own.contains_key(topic)
            || self.topics.get(topic).is_some_and(|marks| marks.iter().any(|mark| now < mark.until))
    }

    /// Decides about a notification, and remembers a dropped one.
    pub(super) fn decide(&mut self, topic: &Topic, now: Instant) -> Verdict {
        if self.is_watched(topic, now) || self.is_in_doubt(now) {
            return Verdict::Send;
        }
        self.dropped.forget(now, self.spans.memory);
        if self.dropped.order.len() >= self.spans.remembered && !self.dropped.compact(self.spans.remembered) {
            return Verdict::Send;
        }
        self.dropped.add(topic, now);
        Verdict::Drop
    }

    /// Takes note of an announcement. Returns the watched topics in it whose notification was dropped lately: the announcement and
    /// the notification may have crossed.
    pub(super) fn announced(&mut self, announcement: Announcement, now: Instant) -> Vec<Topic> {
        let Announcement { node, number, watches, topics } = announcement;
        let last = self.numbers.entry(node).or_default();
        // The notifier sent a statement twice, because its answer was late or lost.
        if number <= *last {
            return Vec::new();
        }
        *last = number;
        self.dropped.forget(now, self.spans.memory);
        let mut crossed = Vec::new();
        for topic in topics {
            if watches {
                if self.dropped.remove(&topic) {
                    crossed.push(topic.clone());
                }
                let until = now + self.spans.mark;
                let marks = self.topics.entry(topic).or_default();
                match marks.iter_mut().find(|mark| mark.node == node) {
                    Some(mark) => mark.until = until,
                    None => marks.push(Mark { node, until }),
                }
            } else if let Some(marks) = self.topics.get_mut(&topic) {
                marks.retain(|mark| mark.node != node);
                if marks.is_empty() {
                    self.topics.remove(&topic);
                }
            }
        }
        crossed
    }

    /// Announcements may have been missed: everything is sent until all processes have renewed their marks. Returns the topics
    /// whose notifications were dropped lately.
    pub(super) fn distrust(&mut self, now: Instant) -> Vec<Topic> {
        self.doubt_until = now + self.spans.doubt;
        self.dropped.order.clear();
        self.dropped.last.drain().map(|(topic, _)| topic).collect()
    }

    /// No announcement arrives any more: everything is sent from now on.
    pub(super) fn distrust_permanently(&mut self) {
        self.always_in_doubt = true;
    }

    pub(super) fn is_in_doubt(&self, now: Instant) -> bool {
        self.always_in_doubt || now < self.doubt_until
    }

    /// Forgets expired marks and dropped notifications.
    pub(super) fn expire(&mut self, now: Instant) {
        self.topics.retain(|_, marks| {
            marks.retain(|mark| now < mark.until);
            !marks.is_empty()
        });
        let alive: HashSet<Node> = self.topics.values().flatten().map(|mark| mark.node).collect();
        self.numbers.retain(|node, _| alive.contains(node));
        self.dropped.forget(now, self.spans.memory);
    }

    /// The topics that are watched in this process.
    pub(super) fn own(&self) -> impl Iterator<Item = &Topic> {
        self.own.keys()
    }

    /// Whether a topic is watched in this process.
    pub(super) fn watches(&self, topic: &Topic) -> bool {
        self.own.contains_key(topic)
    }

    /// How many topics are watched in this process, and how many in others.
    pub(super) fn count(&self, now: Instant) -> (usize, usize) {
        let elsewhere = self.topics.values().filter(|marks| marks.iter().any(|mark| now < mark.until));
        (self.own.len(), elsewhere.count())
    }
}

impl Dropped {
    fn add(&mut self, topic: &Topic, now: Instant) {
        if self.last.insert(topic.clone(), now) != Some(now) {
            self.order.push_back((now, topic.clone()));
        }
    }

    fn remove(&mut self, topic: &Topic) -> bool {
        self.last.remove(topic).is_some()
    }

    fn forget(&mut self, now: Instant, memory: Duration) {
        while let Some((at, topic)) = self.order.pop_front_if(|(at, _)| *at + memory <= now) {
            if self.last.get(&topic) == Some(&at) {
                self.last.remove(&topic);
            }
        }
    }

    /// Removes from the order what is in it more than once. Returns whether it then has room.
    fn compact(&mut self, room: usize) -> bool {
        // With at least half of the places in use by different topics, the search would find too little.
        if self.last.len() * 2 > room {
            return false;
        }
        let Self { last, order } = self;
        order.retain(|(at, topic)| last.get(topic) == Some(at));
        order.len() < room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPANS: Spans = Spans {
        mark: Duration::from_secs(90),
        doubt: Duration::from_mins(1),
        memory: Duration::from_secs(77),
        remembered: 4,
    };

    /// A map that is not in doubt, and the time.
    fn marks() -> (Marks, Instant) {
        let start = Instant::now();
        (Marks::new(SPANS, start), start + SPANS.doubt)
    }

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    fn announcement(node: Node, number: u64, watches: bool, names: &[&str]) -> Announcement {
        Announcement { node, number, watches, topics: names.iter().map(|name| topic(name)).collect() }
    }

    #[test]
    fn a_new_map_sends_everything_until_all_processes_have_renewed() {
        let start = Instant::now();
        let mut marks = Marks::new(SPANS, start);
        let almost = start + SPANS.doubt - Duration::from_nanos(1);

        assert_eq!(marks.decide(&topic("a"), almost), Verdict::Send);
        assert_eq!(marks.decide(&topic("a"), start + SPANS.doubt), Verdict::Drop);
    }

    #[test]
    fn a_map_that_receives_nothing_any_more_sends_everything() {
        let (mut marks, now) = marks();
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);

        marks.distrust_permanently();

        assert_eq!(marks.decide(&topic("a"), now + SPANS.doubt * 1000), Verdict::Send);
    }

    #[test]
    fn only_watched_topics_are_sent() {
        let (mut marks, now) = marks();
        marks.announced(announcement(1, 1, true, &["a", "b"]), now);
        assert!(marks.watch(&topic("mine")));
        assert!(!marks.watch(&topic("mine")), "the first watch was announced");

        for (name, verdict) in
            [("a", Verdict::Send), ("b", Verdict::Send), ("mine", Verdict::Send), ("c", Verdict::Drop)]
        {
            assert_eq!(marks.decide(&topic(name), now), verdict, "{name}");
        }
        assert_eq!(marks.count(now), (1, 2));

        marks.announced(announcement(1, 2, false, &["a"]), now);
        assert!(!marks.unwatch(&topic("mine")), "one watch is left");
        assert!(marks.unwatch(&topic("mine")));
        assert!(!marks.unwatch(&topic("mine")), "no watch was left");
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);
        assert_eq!(marks.decide(&topic("mine"), now), Verdict::Drop);
    }

    #[test]
    fn a_topic_is_watched_as_long_as_one_process_does() {
        let (mut marks, now) = marks();
        marks.announced(announcement(1, 1, true, &["a"]), now);
        marks.announced(announcement(2, 1, true, &["a"]), now);

        marks.announced(announcement(1, 2, false, &["a"]), now);
        assert!(marks.is_watched(&topic("a"), now));

        marks.announced(announcement(2, 2, false, &["a"]), now);
        assert!(!marks.is_watched(&topic("a"), now));
    }

    #[test]
    fn a_mark_that_is_not_renewed_expires() {
        let (mut marks, now) = marks();
        let later = now + SPANS.mark / 2;
        marks.announced(announcement(1, 1, true, &["a", "b"]), now);
        marks.announced(announcement(1, 2, true, &["b"]), later);
        let end = now + SPANS.mark;

        assert_eq!(marks.decide(&topic("a"), end - Duration::from_nanos(1)), Verdict::Send);
        assert_eq!(marks.decide(&topic("a"), end), Verdict::Drop);
        assert_eq!(marks.decide(&topic("b"), end), Verdict::Send);
        marks.expire(end);
        assert_eq!(marks.count(end), (0, 1));
        marks.expire(later + SPANS.mark);
        assert!(marks.topics.is_empty() && marks.numbers.is_empty(), "{marks:?}");
    }

    #[test]
    fn an_announcement_that_crosses_a_dropped_notification_recovers_it_once() {
        let (mut marks, now) = marks();
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);

        assert_eq!(marks.announced(announcement(1, 1, true, &["b", "a"]), now), [topic("a")]);
        assert_eq!(marks.announced(announcement(2, 1, true, &["a"]), now), []);
    }

    #[test]
    fn a_dropped_notification_is_remembered_for_the_span_of_memory() {
        let (mut marks, now) = marks();
        let end = now + SPANS.memory;
        for name in ["a", "b"] {
            marks.decide(&topic(name), now);
        }
        marks.decide(&topic("b"), now + Duration::from_secs(1));

        assert_eq!(marks.announced(announcement(1, 1, true, &["a", "b"]), end), [topic("b")]);
        marks.expire(now + SPANS.memory * 2);
        assert!(marks.dropped.last.is_empty() && marks.dropped.order.is_empty(), "{marks:?}");
    }

    #[test]
    fn after_a_gap_dropped_notifications_are_recovered_and_everything_is_sent() {
        let (mut marks, now) = marks();
        marks.decide(&topic("a"), now);

        assert_eq!(marks.distrust(now), [topic("a")]);
        assert_eq!(marks.distrust(now), [], "once");

        assert!(marks.is_in_doubt(now));
        assert_eq!(marks.decide(&topic("b"), now), Verdict::Send);
        assert_eq!(marks.decide(&topic("b"), now + SPANS.doubt), Verdict::Drop);
    }

    #[test]
    fn a_notification_that_cannot_be_remembered_is_not_dropped() {
        let (mut marks, mut now) = marks();
        for name in ["a", "b", "c", "d"] {
            assert_eq!(marks.decide(&topic(name), now), Verdict::Drop);
        }
        assert_eq!(marks.decide(&topic("e"), now), Verdict::Send);

        // A topic takes one place, however often it is dropped.
        now += SPANS.memory;
        for _ in 0..100 {
            now += Duration::from_millis(1);
            assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);
        }
        assert!(marks.dropped.order.len() <= SPANS.remembered, "{marks:?}");
    }

    #[test]
    fn an_announcement_that_was_sent_twice_counts_once() {
        let (mut marks, now) = marks();
        let first = announcement(1, 1, true, &["a"]);
        marks.announced(first.clone(), now);
        marks.announced(announcement(1, 2, false, &["a"]), now);

        marks.announced(first, now);

        assert!(!marks.is_watched(&topic("a"), now));
    }
}
