//! The form of an announcement. The module's documentation draws it, and old and new processes must agree on it.

use std::fmt::Write;

use crate::Topic;
use crate::wire;

/// A random number that names a process, from its start to its end.
pub(super) type Node = u64;

/// Topics that a process watches from now on, or watches no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) node: Node,
    /// Grows with each announcement of the node. No two announcements are equal, so the notifier sends each of them.
    pub(super) number: u64,
    pub(super) watches: bool,
    pub(super) topics: Vec<Topic>,
}

impl Announcement {
    /// `None` if the text has another form.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let watches = match text.as_bytes().first()? {
            b'+' => true,
            b'-' => false,
            _ => return None,
        };
        let (node, rest) = text[1..].split_once('.')?;
        let (number, mut rest) = rest.split_once(' ')?;
        let node = hexadecimal(node)?;
        let number = hexadecimal(number)?;
        let mut topics = Vec::new();
        while !rest.is_empty() {
            let (length, after) = wire::length(rest)?;
            topics.push(Topic::new(after.get(..length)?).ok()?);
            rest = &after[length..];
        }
        Some(Self { node, number, watches, topics })
    }
}

/// Packs topics into as few announcements as hold them, each no longer than a payload of the topic `on` may be. `number` returns
/// the number of the next announcement.
pub(super) fn encode(
    on: &Topic,
    node: Node,
    watches: bool,
    topics: impl IntoIterator<Item = Topic>,
    mut number: impl FnMut() -> u64,
) -> Vec<String> {
    let limit = wire::payload_limit(on.as_str().len());
    let mut announcements = Vec::new();
    let mut text = String::new();
    let mut entry = String::new();
    for topic in topics {
        entry.clear();
        write!(entry, "{}:{topic}", topic.as_str().len()).expect("writing to a string");
        if !text.is_empty() && text.len() + entry.len() > limit {
            announcements.push(std::mem::take(&mut text));
        }
        if text.is_empty() {
            text = head(watches, node, number());
        }
        text.push_str(&entry);
    }
    if !text.is_empty() {
        announcements.push(text);
    }
    announcements
}

fn head(watches: bool, node: Node, number: u64) -> String {
    let sign = if watches { '+' } else { '-' };
    format!("{sign}{node:016x}.{number:x} ")
}

fn hexadecimal(text: &str) -> Option<u64> {
    let is_plain = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_plain.then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::vectors;

    #[test]
    fn the_form_is_fixed() {
        let number = |text: &str| text.parse::<u64>().expect("a number");
        for (text, says) in vectors(include_str!("../../tests/golden/announcements.txt"), "announcement") {
            let [(watches, _), (_, node), (_, last), topics @ ..] = &says[..] else {
                assert_eq!(says, [("unreadable", "")]);
                assert_eq!(Announcement::decode(text), None, "{text}");
                continue;
            };
            let announcement = Announcement {
                node: number(node),
                number: number(last),
                watches: *watches == "watches",
                topics: topics.iter().map(|(_, name)| Topic::new(name).expect("a topic")).collect(),
            };
            assert_eq!(Announcement::decode(text).as_ref(), Some(&announcement));
            let Announcement { node, number, watches, topics } = announcement;
            let on = Topic::new("watched").expect("a topic");
            assert_eq!(encode(&on, node, watches, topics, || number), [text]);
        }
    }

    #[test]
    fn a_text_of_another_form_is_not_an_announcement() {
        for text in [
            "",
            "+",
            "*1.1 1:a",
            "+1.1",
            "+1 1:a",
            "+g.1 1:a",
            "+1.g 1:a",
            "++1.1 1:a",
            "+1.1 2:a",
            "+1.1 0:",
            "+1.1 1a",
            "+00000000000000001.1 ",
            "-.1 1:a",
            "+1.1 1:ü",
            "ü1.1 1:a",
        ] {
            assert_eq!(Announcement::decode(text), None, "{text}");
        }
    }

    #[test]
    fn many_topics_are_spread_over_announcements_that_fit() {
        let on = Topic::new("watched").expect("a topic");
        let names: Vec<Topic> = (0..5000).map(|n| Topic::new(format!("log/{n}")).expect("a topic")).collect();
        let mut last = 0;

        let announcements = encode(&on, 7, true, names.clone(), || {
            last += 1;
            last
        });

        assert!(announcements.len() > 1);
        let mut read = Vec::new();
        for (text, number) in announcements.iter().zip(1..) {
            assert!(text.len() <= wire::payload_limit(on.as_str().len()), "{}", text.len());
            let announcement = Announcement::decode(text).expect("an announcement");
            assert_eq!((announcement.node, announcement.number, announcement.watches), (7, number, true));
            read.extend(announcement.topics);
        }
        assert_eq!(read, names);
        assert_eq!(encode(&on, 7, true, [], || 1), Vec::<String>::new());
    }

    #[test]
    fn the_longest_topic_fits_beside_the_longest() {
        let longest = Topic::new("t".repeat(Topic::MAX_BYTES)).expect("a topic");

        let announcements = encode(&longest, u64::MAX, false, [longest.clone()], || u64::MAX);

        let announcement = Announcement::decode(&announcements[0]).expect("an announcement");
        assert_eq!(
            announcement,
            Announcement { node: u64::MAX, number: u64::MAX, watches: false, topics: vec![longest] }
        );
    }
}
