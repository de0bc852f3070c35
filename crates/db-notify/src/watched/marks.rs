//! Who watches what, as far as it is known here. No clock and no I/O: whoever asks says what time it is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::announcement::{Announcement, Node};
use crate::Topic;

/// What becomes of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Somebody watches the topic, or may.
    Send,
    /// Nobody does.
    Drop,
}

/// For how long things are believed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    /// How long a mark is good without being renewed.
    pub(super) mark: Duration,
    /// How long the map is distrusted after something may have been missed.
    pub(super) doubt: Duration,
    /// How long it is remembered that a notification was dropped.
    pub(super) memory: Duration,
    /// How many topics are remembered like that. Past it, nothing is dropped: what is not remembered could not be made good.
    pub(super) remembered: usize,
}

/// The marks of all processes.
#[derive(Debug)]
pub(super) struct Marks {
    spans: Spans,
    topics: HashMap<Topic, Vec<Mark>>,
    /// The number of each node's last announcement.
    numbers: HashMap<Node, u64>,
    /// How many watch here.
    own: HashMap<Topic, usize>,
    doubt_until: Instant,
    is_deaf: bool,
    dropped: Dropped,
}

#[derive(Debug)]
struct Mark {
    node: Node,
    until: Instant,
}

/// Topics that were notified of while nobody watched them, and when last.
#[derive(Debug, Default)]
struct Dropped {
    last: HashMap<Topic, Instant>,
    /// In the order of time; a topic that was dropped again is in it more than once.
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
            is_deaf: false,
            dropped: Dropped::default(),
        }
    }

    /// Somebody here watches a topic. Tells whether it is the first one, which is to be announced.
    pub(super) fn watch(&mut self, topic: &Topic) -> bool {
        let count = self.own.entry(topic.clone()).or_default();
        *count += 1;
        *count == 1
    }

    /// Tells whether it was the last one, which is to be announced.
    pub(super) fn unwatch(&mut self, topic: &Topic) -> bool {
        let Some(count) = self.own.get_mut(topic) else { return false };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.own.remove(topic);
        }
        is_last
    }

    /// Whether anybody watches a topic, as far as it is known here.
    pub(super) fn is_watched(&self, topic: &Topic, now: Instant) -> bool {
        self.own.contains_key(topic)
            || self.topics.get(topic).is_some_and(|marks| marks.iter().any(|mark| now < mark.until))
    }

    /// What becomes of a notification. One that is dropped is remembered.
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

    /// Takes note of an announcement, and returns the topics that somebody began to watch while a notification of them was
    /// dropped: the two may have crossed.
    pub(super) fn announced(&mut self, announcement: Announcement, now: Instant) -> Vec<Topic> {
        let Announcement { node, number, watches, topics } = announcement;
        let last = self.numbers.entry(node).or_default();
        // A statement that was sent twice, because nobody knew whether it was done.
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

    /// Announcements may have been missed: everything is let through until all who watch have renewed their marks. Returns the
    /// topics that were dropped lately.
    pub(super) fn distrust(&mut self, now: Instant) -> Vec<Topic> {
        self.doubt_until = now + self.spans.doubt;
        self.dropped.order.clear();
        self.dropped.last.drain().map(|(topic, _)| topic).collect()
    }

    /// No announcement is heard any more: everything is let through from now on.
    pub(super) fn distrust_for_ever(&mut self) {
        self.is_deaf = true;
    }

    pub(super) fn is_in_doubt(&self, now: Instant) -> bool {
        self.is_deaf || now < self.doubt_until
    }

    /// Forgets what is no longer good.
    pub(super) fn expire(&mut self, now: Instant) {
        self.topics.retain(|_, marks| {
            marks.retain(|mark| now < mark.until);
            !marks.is_empty()
        });
        let alive: HashSet<Node> = self.topics.values().flatten().map(|mark| mark.node).collect();
        self.numbers.retain(|node, _| alive.contains(node));
        self.dropped.forget(now, self.spans.memory);
    }

    /// The topics that are watched here.
    pub(super) fn own(&self) -> impl Iterator<Item = &Topic> {
        self.own.keys()
    }

    pub(super) fn watches(&self, topic: &Topic) -> bool {
        self.own.contains_key(topic)
    }

    /// How many topics are watched here, and how many somewhere else.
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

    /// Leaves out of the order what is in it more than once. Tells whether there is room for others then.
    fn compact(&mut self, room: usize) -> bool {
        // As long as there may be nothing to gain, it is not looked for.
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

    /// A map that trusts itself, and the time.
    fn marks() -> (Marks, Instant) {
        let start = Instant::now();
        (Marks::new(SPANS, start), start + SPANS.doubt)
    }

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    fn said(node: Node, number: u64, watches: bool, names: &[&str]) -> Announcement {
        Announcement { node, number, watches, topics: names.iter().map(|name| topic(name)).collect() }
    }

    #[test]
    fn a_map_that_is_new_lets_everything_through_until_all_have_renewed() {
        let start = Instant::now();
        let mut marks = Marks::new(SPANS, start);
        let almost = start + SPANS.doubt - Duration::from_nanos(1);

        assert_eq!(marks.decide(&topic("a"), almost), Verdict::Send);
        assert_eq!(marks.decide(&topic("a"), start + SPANS.doubt), Verdict::Drop);
    }

    #[test]
    fn a_map_that_hears_nobody_any_more_lets_everything_through() {
        let (mut marks, now) = marks();
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);

        marks.distrust_for_ever();

        assert_eq!(marks.decide(&topic("a"), now + SPANS.doubt * 1000), Verdict::Send);
    }

    #[test]
    fn only_what_somebody_watches_is_sent() {
        let (mut marks, now) = marks();
        marks.announced(said(1, 1, true, &["a", "b"]), now);
        assert!(marks.watch(&topic("mine")));
        assert!(!marks.watch(&topic("mine")), "it was announced");

        for (name, verdict) in
            [("a", Verdict::Send), ("b", Verdict::Send), ("mine", Verdict::Send), ("c", Verdict::Drop)]
        {
            assert_eq!(marks.decide(&topic(name), now), verdict, "{name}");
        }
        assert_eq!(marks.count(now), (1, 2));

        marks.announced(said(1, 2, false, &["a"]), now);
        assert!(!marks.unwatch(&topic("mine")), "one is left");
        assert!(marks.unwatch(&topic("mine")));
        assert!(!marks.unwatch(&topic("mine")), "nobody was left");
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);
        assert_eq!(marks.decide(&topic("mine"), now), Verdict::Drop);
    }

    #[test]
    fn a_topic_is_watched_as_long_as_one_process_does() {
        let (mut marks, now) = marks();
        marks.announced(said(1, 1, true, &["a"]), now);
        marks.announced(said(2, 1, true, &["a"]), now);

        marks.announced(said(1, 2, false, &["a"]), now);
        assert!(marks.is_watched(&topic("a"), now));

        marks.announced(said(2, 2, false, &["a"]), now);
        assert!(!marks.is_watched(&topic("a"), now));
    }

    #[test]
    fn a_mark_that_is_not_renewed_expires() {
        let (mut marks, now) = marks();
        let later = now + SPANS.mark / 2;
        marks.announced(said(1, 1, true, &["a", "b"]), now);
        marks.announced(said(1, 2, true, &["b"]), later);
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
    fn an_announcement_that_crosses_a_dropped_notification_brings_it_back_once() {
        let (mut marks, now) = marks();
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);
        assert_eq!(marks.decide(&topic("a"), now), Verdict::Drop);

        assert_eq!(marks.announced(said(1, 1, true, &["b", "a"]), now), [topic("a")]);
        assert_eq!(marks.announced(said(2, 1, true, &["a"]), now), []);
    }

    #[test]
    fn what_was_dropped_is_remembered_for_so_long_and_no_longer() {
        let (mut marks, now) = marks();
        let end = now + SPANS.memory;
        for name in ["a", "b"] {
            marks.decide(&topic(name), now);
        }
        marks.decide(&topic("b"), now + Duration::from_secs(1));

        assert_eq!(marks.announced(said(1, 1, true, &["a", "b"]), end), [topic("b")]);
        marks.expire(now + SPANS.memory * 2);
        assert!(marks.dropped.last.is_empty() && marks.dropped.order.is_empty(), "{marks:?}");
    }

    #[test]
    fn after_a_gap_what_was_dropped_is_sent_and_everything_is_let_through() {
        let (mut marks, now) = marks();
        marks.decide(&topic("a"), now);

        assert_eq!(marks.distrust(now), [topic("a")]);
        assert_eq!(marks.distrust(now), [], "once");

        assert!(marks.is_in_doubt(now));
        assert_eq!(marks.decide(&topic("b"), now), Verdict::Send);
        assert_eq!(marks.decide(&topic("b"), now + SPANS.doubt), Verdict::Drop);
    }

    #[test]
    fn what_cannot_be_remembered_is_not_dropped() {
        let (mut marks, mut now) = marks();
        for name in ["a", "b", "c", "d"] {
            assert_eq!(marks.decide(&topic(name), now), Verdict::Drop);
        }
        assert_eq!(marks.decide(&topic("e"), now), Verdict::Send);

        // One topic, however often, takes one place.
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
        let first = said(1, 1, true, &["a"]);
        marks.announced(first.clone(), now);
        marks.announced(said(1, 2, false, &["a"]), now);

        marks.announced(first, now);

        assert!(!marks.is_watched(&topic("a"), now));
    }
}
