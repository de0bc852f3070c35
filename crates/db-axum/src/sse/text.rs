//! Events in the form of the standard, piece by piece.

use std::fmt::{self, Write};
use std::sync::Arc;

use db_layer::{Event, Events, NewEvent};

use super::Cursor;

/// A page of events, and how far it was written.
pub(super) struct Text {
    events: Events,
    /// The kinds that are written; None for all.
    kinds: Option<Arc<[String]>>,
    /// The event before them.
    before: Cursor,
    /// The events that were written or skipped.
    number: usize,
    /// The last event that was written.
    written: Option<i64>,
    part: Part,
}

/// How much of an event was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Part {
    /// Whether the lines before its data were written.
    has_head: bool,
    /// The bytes of its data that were written.
    data: usize,
    /// Whether a line of its data was begun and not ended.
    in_line: bool,
}

impl Text {
    /// A page, of whose first event `part` was already written.
    pub(super) fn new(events: Events, kinds: Option<Arc<[String]>>, before: Cursor, part: Part) -> Self {
        let mut text = Self { events, kinds, before, number: 0, written: None, part };
        text.skip();
        text
    }

    /// Skips events of other kinds, up to one that is to be written.
    fn skip(&mut self) {
        let Some(kinds) = &self.kinds else { return };
        let is_wanted = |event: &Event| kinds.iter().any(|kind| **kind == *event.kind);
        while self.events.get(self.number).is_some_and(|event| !is_wanted(event)) {
            self.number += 1;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.number == self.events.len()
    }

    /// The last event that was written.
    pub(super) fn written(&self) -> Option<i64> {
        self.written
    }

    /// The last event that was written or skipped, and how much of the event after it was written.
    pub(super) fn place(&self) -> (Cursor, Part) {
        let last = self.events[..self.number].last().map(|event| Cursor(event.id, Some(event.mark)));
        (last.unwrap_or(self.before), self.part)
    }

    /// The next piece: `most` bytes, or some more to end a line. Empty when all events are written.
    pub(super) fn next(&mut self, most: usize) -> String {
        let mut text = String::with_capacity(self.about(most));
        while text.len() < most
            && let Some(event) = self.events.get(self.number)
        {
            // An event that was stored before these kinds were refused must not pass for the end.
            let is_reserved = NewEvent::RESERVED_KINDS.contains(&&*event.kind);
            let (before, kind, after) =
                if is_reserved { ("", "", "") } else { ("event: ", &*event.kind, "\n") };
            let head = format_args!("id: {}-{}\n{before}{kind}{after}", event.id, event.mark);
            if self.part.write(head, &event.data, most, &mut text) {
                self.written = Some(event.id);
                self.number += 1;
                self.part = Part::default();
                self.skip();
            }
        }
        text
    }

    /// The size of the next piece, at most.
    fn about(&self, most: usize) -> usize {
        let mut bytes = 0;
        for event in &self.events[self.number..] {
            bytes += event.data.len() + event.kind.len() + 48;
            if bytes >= most {
                return most + 128;
            }
        }
        bytes
    }
}

impl Part {
    /// Whether a part was written, and not the whole event.
    pub(super) fn is_begun(self) -> bool {
        self.has_head
    }

    /// Writes an event until the text has `most` bytes. Returns whether the event is written whole.
    fn write(&mut self, head: fmt::Arguments<'_>, data: &str, most: usize, text: &mut String) -> bool {
        if !self.has_head {
            text.write_fmt(head).expect("writing to a string");
            self.has_head = true;
        }
        loop {
            if text.len() >= most {
                return false;
            }
            if !self.in_line {
                text.push_str("data: ");
                self.in_line = true;
            }
            let rest = data.get(self.data..).unwrap_or_default();
            let fits = &rest[..rest.floor_char_boundary(most.saturating_sub(text.len()))];
            // In the standard, CR, LF and CRLF end a line. JSON has none of them.
            if let Some(end) = fits.find(['\r', '\n']) {
                text.push_str(&fits[..end]);
                text.push('\n');
                self.data += end + if rest[end..].starts_with("\r\n") { 2 } else { 1 };
                self.in_line = false;
            } else {
                text.push_str(fits);
                self.data += fits.len();
                if fits.len() < rest.len() {
                    return false;
                }
                text.push_str("\n\n");
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "id: 7\nevent: line\n";

    /// The whole event, in the form of the standard.
    fn whole(data: &str) -> String {
        let lines = data.split("\r\n").flat_map(|part| part.split(['\r', '\n']));
        let lines: String = lines.flat_map(|line| ["data: ", line, "\n"]).collect();
        format!("{HEAD}{lines}\n")
    }

    #[test]
    fn the_pieces_of_an_event_are_the_event_wherever_it_is_cut() {
        for data in [
            "",
            "a",
            "\n",
            "\r\n",
            "\n\r",
            "a\r\nb\rc\nd",
            "\r\r\n\n",
            "äöü\r\n🦀🦀\n",
            "a longer line, and\none more\n",
        ] {
            for most in 1..80 {
                let (mut all, mut part) = (String::new(), Part::default());
                loop {
                    // An answer that stalled continues from a copy of its part.
                    let mut again = part;
                    let mut piece = String::new();
                    let is_whole = again.write(format_args!("{HEAD}"), data, most, &mut piece);
                    part = again;
                    assert!(piece.len() <= most + HEAD.len() + "data: \n\n".len(), "{piece:?}");
                    assert!(
                        is_whole || !piece.is_empty() || most < 4,
                        "{data:?} in pieces of {most} goes on"
                    );
                    all += &piece;
                    if is_whole {
                        break;
                    }
                    if most < 4 && piece.is_empty() {
                        // The piece has no room for a letter of four bytes.
                        all = whole(data);
                        break;
                    }
                }
                assert_eq!(all, whole(data), "{data:?} in pieces of {most}");
            }
        }
    }
}
