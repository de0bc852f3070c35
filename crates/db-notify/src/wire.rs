//! The form of a NOTIFY payload. The crate's documentation draws it, and old and new processes must agree on it.

use std::fmt::Write;

/// The longest payload, in bytes. PostgreSQL refuses 8000 bytes (manual, NOTIFY).
pub(crate) const LIMIT: usize = 7999;
const VERSION: char = '1';
/// The message "everything", in place of notifications that could not be sent: read all data again.
pub(crate) const EVERYTHING: &str = "1*";

/// A payload without entries, to check that notifications arrive.
pub(crate) const NOTHING: &str = "1";

/// The longest payload beside a topic of `topic` bytes, in bytes.
pub(crate) fn payload_limit(topic: usize) -> usize {
    // Version, two lengths of at most four digits, two colons.
    LIMIT - 1 - 4 - 4 - 2 - topic
}

/// Packs entries into as few payloads as hold them, in their order.
pub(crate) fn encode<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut payloads = Vec::new();
    let mut current = String::new();
    let mut entry = String::new();
    for (topic, payload) in entries {
        entry.clear();
        write!(entry, "{}:{}:{topic}{payload}", topic.len(), payload.len()).expect("writing to a string");
        if !current.is_empty() && current.len() + entry.len() > LIMIT {
            payloads.push(std::mem::take(&mut current));
        }
        if current.is_empty() {
            current.push(VERSION);
        }
        current.push_str(&entry);
    }
    if !current.is_empty() {
        payloads.push(current);
    }
    payloads
}

/// The content of a payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Entries(Entries<'a>),
    Everything,
}

/// Topics and their payloads, in the order in which they were packed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entries<'a> {
    next: Option<Entry<'a>>,
    rest: &'a str,
}

type Entry<'a> = (&'a str, &'a str);

/// Reads a payload. `None` if any part of it has another form.
pub(crate) fn decode(payload: &str) -> Option<Message<'_>> {
    if payload == EVERYTHING {
        return Some(Message::Everything);
    }
    let text = payload.strip_prefix(VERSION)?;
    if text.is_empty() {
        return Some(Message::Entries(Entries { next: None, rest: "" }));
    }
    let (first, rest) = entry(text)?;
    // The other entries are checked here and read again by the iterator: most payloads have one entry, and need no list.
    let mut unread = rest;
    while !unread.is_empty() {
        (_, unread) = entry(unread)?;
    }
    Some(Message::Entries(Entries { next: Some(first), rest }))
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let next = self.next.take()?;
        if let Some((following, rest)) = entry(self.rest) {
            (self.next, self.rest) = (Some(following), rest);
        }
        Some(next)
    }
}

/// Splits an entry from the rest of the text.
fn entry(text: &str) -> Option<(Entry<'_>, &str)> {
    let (topic_length, after) = length(text)?;
    let (payload_length, after) = length(after)?;
    let (topic, after) = after.split_at_checked(topic_length)?;
    let (payload, rest) = after.split_at_checked(payload_length)?;
    Some(((topic, payload), rest))
}

/// Splits a length and its colon from the rest of the text.
pub(crate) fn length(text: &str) -> Option<(usize, &str)> {
    let mut length = 0;
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' if place < 4 => length = 10 * length + usize::from(byte - b'0'),
            b':' if place > 0 => return Some((length, &text[place + 1..])),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{entries, vectors};

    fn read(payload: &str) -> Vec<(&str, &str)> {
        match decode(payload) {
            Some(Message::Entries(entries)) => entries.collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_form_is_fixed() {
        for (payload, says) in vectors(include_str!("../tests/golden/wire.txt"), "notify") {
            match &says[..] {
                [("everything", _)] => assert_eq!(decode(payload), Some(Message::Everything), "{payload}"),
                [("nothing", _)] => assert_eq!(read(payload), [], "{payload}"),
                [("unreadable", _)] => assert_eq!(decode(payload), None, "{payload}"),
                says => {
                    let entries = entries(says);
                    assert_eq!(encode(entries.clone()), [payload]);
                    assert_eq!(read(payload), entries, "{payload}");
                }
            }
        }
        assert_eq!(decode(EVERYTHING), Some(Message::Everything));
        assert_eq!(read(NOTHING), []);
        assert_eq!(encode([]), Vec::<String>::new());
    }

    #[test]
    fn a_payload_of_another_form_is_not_read() {
        for payload in [
            "",
            "2*",
            "25:0:log/7",
            "1x",
            "15:0:log",
            "1-1:0:",
            "1+1:0:a",
            "199999:0:a",
            "11:0:ü",
            "15:0",
            "1:",
            "**",
            "11:1:abx",
            "11:1:ab1:2:c",
            "1:0:a",
            "11::a",
        ] {
            assert_eq!(decode(payload), None, "{payload}");
        }
    }

    #[test]
    fn many_entries_are_spread_over_payloads_that_postgresql_accepts() {
        let topics: Vec<String> = (0..5000).map(|n| format!("log/{n}")).collect();

        let payloads = encode(topics.iter().map(|topic| (topic.as_str(), "")));

        assert!(payloads.iter().all(|payload| payload.len() <= LIMIT));
        let read: Vec<&str> =
            payloads.iter().flat_map(|payload| read(payload)).map(|(topic, _)| topic).collect();
        assert_eq!(read, topics);
    }

    #[test]
    fn the_longest_topic_and_payload_fit() {
        let topic = "t".repeat(255);
        let payload = "p".repeat(payload_limit(topic.len()));

        let payloads = encode([(topic.as_str(), payload.as_str())]);

        assert_eq!(payloads.len(), 1);
        assert!(payloads[0].len() <= LIMIT, "{}", payloads[0].len());
    }
}
