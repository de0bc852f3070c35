//! A line of output, or a piece of one.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use db_layer::NewEvent;
use serde::{Deserialize, Serialize};

/// Output as an event's data: text where it is UTF-8, base64 where it is not.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// Whether a line end follows. It is written only if false, since true is the common case.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    newline: bool,
}

impl<'a> Piece<'a> {
    pub(crate) fn new(bytes: &'a [u8], newline: bool) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: Some(text.into()), base64: None, newline },
            Err(_) => Self { text: None, base64: Some(STANDARD.encode(bytes)), newline },
        }
    }

    /// Reads an event's data; `None` when it is not a piece of output.
    pub(crate) fn read(data: &str) -> Option<Piece<'static>> {
        let piece: Piece<'static> = serde_json::from_str(data).ok()?;
        (piece.text.is_some() != piece.base64.is_some()).then_some(piece)
    }

    pub(crate) fn to_event(&self, kind: &'static str) -> NewEvent {
        NewEvent::new(kind, serde_json::to_string(self).expect("a plain structure becomes JSON"))
    }

    /// Appends the bytes as the command wrote them.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        match (&self.text, &self.base64) {
            (Some(text), _) => out.extend_from_slice(text.as_bytes()),
            (None, Some(base64)) => match STANDARD.decode(base64) {
                Ok(bytes) => out.extend_from_slice(&bytes),
                // Not written by buildwatch; shown as it is rather than dropped.
                Err(_) => out.extend_from_slice(base64.as_bytes()),
            },
            (None, None) => {}
        }
        if self.newline {
            out.push(b'\n');
        }
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
fn is_yes(newline: &bool) -> bool {
    *newline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_as_short_as_it_can_be() {
        let data = |bytes, newline| serde_json::to_string(&Piece::new(bytes, newline)).expect("JSON");

        assert_eq!(data(b"line 1", true), r#"{"text":"line 1"}"#);
        assert_eq!(data(b"a\0\x1b\"", false), r#"{"text":"a\u0000\u001b\"","newline":false}"#);
        assert_eq!(data(b"\xff\xfe", true), r#"{"base64":"//4="}"#);
    }
}
