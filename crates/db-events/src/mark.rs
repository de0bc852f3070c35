//! The mark by which a reader recognizes a batch.

use std::fmt;

use time::OffsetDateTime;

/// The digits of a mark as text.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Identifies the batch in which an event was appended: a short hash of the batch's first id, its time, its writer and its sequence
/// number.
///
/// An event's id alone does not identify the event. A server that has lost the end of a log (a standby that had not received it
/// was promoted, a backup was restored) gives the same ids to other events. A reader that keeps the mark of its last event beside
/// the id is told: [`Error::Rewound`](crate::Error::Rewound).
///
/// As text, a mark has one to seven digits and small letters. It is the same in all processes and versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(u32);

impl Mark {
    pub(crate) fn of(first: i64, at: OffsetDateTime, source: Option<(i64, i64)>) -> Self {
        // PostgreSQL's clock has microseconds.
        let at = at.unix_timestamp() * 1_000_000 + i64::from(at.microsecond());
        let (writer, sequence) = source.unwrap_or_default();
        let words = [first, at, i64::from(source.is_some()), writer, sequence];
        let hash = words.iter().fold(0, |hash, word| mixed(hash ^ word.cast_unsigned()));
        let [a, b, c, d, ..] = hash.to_be_bytes();
        Self(u32::from_be_bytes([a, b, c, d]))
    }

    /// Parses a mark as [`Display`](fmt::Display) writes it. None if the text is no mark.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| DIGITS.contains(&byte));
        let number = if is_plain { u32::from_str_radix(text, 36).ok() } else { None };
        number.map(Self)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'0'; 7];
        let mut rest = self.0;
        let mut begin = text.len();
        while rest > 0 || begin == text.len() {
            begin -= 1;
            text[begin] = DIGITS[(rest % 36) as usize];
            rest /= 36;
        }
        f.write_str(std::str::from_utf8(&text[begin..]).map_err(|_| fmt::Error)?)
    }
}

/// The finalizer of `SplitMix64`: each bit of the input changes each bit of the output about half of the time.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use time::Duration;

    use super::*;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn a_mark_differs_if_any_of_its_inputs_differs() {
        let later = AT + Duration::microseconds(1);
        let marks = [
            Mark::of(1, AT, None),
            Mark::of(2, AT, None),
            Mark::of(1, later, None),
            Mark::of(1, AT, Some((0, 0))),
            Mark::of(1, AT, Some((1, 0))),
            Mark::of(1, AT, Some((0, 1))),
        ];

        assert_eq!(marks.iter().collect::<HashSet<_>>().len(), marks.len(), "{marks:?}");
    }

    #[test]
    fn a_mark_is_the_same_in_all_versions_since_clients_store_it() {
        let at = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");

        assert_eq!(Mark::of(6, at, None).to_string(), "tzl9w9");
        assert_eq!(Mark::of(6, at, Some((7, 8))).to_string(), "1txbb96");
    }

    #[test]
    fn a_mark_parses_as_it_is_written_and_other_texts_do_not() {
        for number in [0, 1, 35, 36, 0x00c0_ffee, u32::MAX] {
            let text = Mark(number).to_string();
            assert!(text.len() <= 7, "{text}");
            assert_eq!(Mark::parse(&text), Some(Mark(number)), "{text}");
        }
        for text in
            ["", "-1", "+1", "K3F9", "k3 f9", " k3f9", "1z141z4", "zzzzzzz", "zzzzzzzzzzzzzzzzzz", "k3é9"]
        {
            assert_eq!(Mark::parse(text), None, "{text:?}");
        }
    }
}
