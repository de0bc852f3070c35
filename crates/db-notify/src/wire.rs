//! The form of a NOTIFY payload. It is drawn in the crate's documentation, and old and new processes must agree on it.

use std::fmt::Write;

/// PostgreSQL refuses a payload of 8000 bytes (manual, NOTIFY).
pub(crate) const LIMIT: usize = 7999;
const VERSION: char = '1';
/// "More was to be said than fits": look at everything again.
pub(crate) const EVERYTHING: &str = "1*";

/// No entries at all: to see whether anything arrives.
pub(crate) const NOTHING: &str = "1";

/// How many bytes a payload may have beside a topic of `topic` bytes.
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

/// What a payload says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Entries(Vec<(&'a str, &'a str)>),
    Everything,
}

/// Reads a payload; `None` when it is not of this form.
pub(crate) fn decode(payload: &str) -> Option<Message<'_>> {
    if payload == EVERYTHING {
        return Some(Message::Everything);
    }
    let mut rest = payload.strip_prefix(VERSION)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (topic_length, after) = length(rest)?;
        let (payload_length, after) = length(after)?;
        let topic = after.get(..topic_length)?;
        let after = &after[topic_length..];
        let payload = after.get(..payload_length)?;
        rest = &after[payload_length..];
        entries.push((topic, payload));
    }
    Some(Message::Entries(entries))
}

fn length(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once(':')?;
    if digits.len() > 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_fixed() {
        for (entries, payload) in [
            (vec![("log/7", "")], "15:0:log/7"),
            (vec![("a", "b"), ("log/7", "x:1")], "11:1:ab5:3:log/7x:1"),
            (vec![("ü€", "🦀")], "15:4:ü€🦀"),
            (vec![(":", ":"), ("*", "*")], "11:1:::1:1:**"),
        ] {
            assert_eq!(encode(entries.clone()), [payload]);
            assert_eq!(decode(payload), Some(Message::Entries(entries)));
        }
        assert_eq!(decode("1*"), Some(Message::Everything));
        assert_eq!(decode("1"), Some(Message::Entries(vec![])));
    }

    #[test]
    fn what_is_not_of_this_form_is_not_guessed_at() {
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
        ] {
            assert_eq!(decode(payload), None, "{payload}");
        }
    }

    #[test]
    fn many_entries_are_spread_over_payloads_that_postgresql_accepts() {
        let topics: Vec<String> = (0..5000).map(|n| format!("log/{n}")).collect();

        let payloads = encode(topics.iter().map(|topic| (topic.as_str(), "")));

        assert!(payloads.iter().all(|payload| payload.len() <= LIMIT));
        let read: Vec<&str> = payloads
            .iter()
            .flat_map(|payload| match decode(payload) {
                Some(Message::Entries(entries)) => entries,
                other => panic!("{other:?}"),
            })
            .map(|(topic, _)| topic)
            .collect();
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
