//! Splits a stream of bytes into lines.

use db_layer::NewEvent;

use super::Piece;

/// A longer line becomes several pieces, so that no event is large.
const MAX_PIECE: usize = 64 << 10;

/// Splits one stream into events: one for each line, several for a long line. No byte is changed or left out.
#[derive(Debug)]
pub(crate) struct Splitter {
    kind: &'static str,
    /// The beginning of a line whose end was not read yet.
    pending: Vec<u8>,
}

impl Splitter {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, pending: Vec::new() }
    }

    /// Adds bytes that were read.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<NewEvent>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.pending.is_empty() && line.len() <= MAX_PIECE {
                out.push(Piece::new(line, true).to_event(self.kind));
            } else {
                self.hold(line, out);
                out.push(Piece::new(&self.pending, true).to_event(self.kind));
                self.pending.clear();
            }
        }
        self.hold(rest, out);
    }

    /// Whether the beginning of a line is held back.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Emits what is held back without waiting for the line end, so that a prompt is visible. The bytes of an incomplete
    /// character stay.
    pub(crate) fn flush(&mut self, out: &mut Vec<NewEvent>) {
        self.cut(complete(&self.pending), out);
    }

    /// Emits everything, at the end of the stream.
    pub(crate) fn finish(&mut self, out: &mut Vec<NewEvent>) {
        self.cut(self.pending.len(), out);
    }

    fn hold(&mut self, bytes: &[u8], out: &mut Vec<NewEvent>) {
        for part in bytes.chunks(MAX_PIECE) {
            if self.pending.len() + part.len() > MAX_PIECE {
                self.flush(out);
            }
            self.pending.extend_from_slice(part);
        }
    }

    fn cut(&mut self, length: usize, out: &mut Vec<NewEvent>) {
        if length > 0 {
            out.push(Piece::new(&self.pending[..length], false).to_event(self.kind));
            self.pending.drain(..length);
        }
    }
}

/// How many bytes there are up to the last complete character; all of them if they are not UTF-8.
fn complete(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<NewEvent> {
        let mut splitter = Splitter::new("stdout");
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, &mut out);
        }
        splitter.finish(&mut out);
        out
    }

    fn bytes(events: &[NewEvent]) -> Vec<u8> {
        let mut out = Vec::new();
        for event in events {
            Piece::read(event.data()).expect("a piece").write_to(&mut out);
        }
        out
    }

    #[test]
    fn all_output_comes_out_again_however_it_was_read() {
        let mut long = vec![b'x'; 3 * MAX_PIECE + 7];
        long.extend_from_slice("é\n".repeat(3).as_bytes());
        let wild: Vec<u8> = (0..20_000_u32).map(|n| (n * 7919).to_le_bytes()[0]).collect();
        let split: Vec<u8> = "é🦀ü".bytes().cycle().take(5 * MAX_PIECE).collect();
        for whole in
            [&b""[..], b"\n", b"\n\n", b"a", b"a\nb", b"a\r\nb\n", b"\0\n\xff\n", &long, &wild, &split]
        {
            for size in [1, 2, 3, 4096, MAX_PIECE, 1 << 20] {
                if whole.len() / size > 200_000 {
                    continue;
                }
                let chunks: Vec<&[u8]> = whole.chunks(size).collect();
                let events = events(&chunks);
                assert_eq!(bytes(&events), whole, "chunks of {size}");
                assert!(events.iter().all(|event| event.data().len() <= 6 * MAX_PIECE + 64));
            }
        }
    }

    #[test]
    fn a_line_is_one_event() {
        let lines = events(&[b"li", b"ne 1\nline 2\n", b"line 3"]);

        let data: Vec<&str> = lines.iter().map(NewEvent::data).collect();
        assert_eq!(
            data,
            [r#"{"text":"line 1"}"#, r#"{"text":"line 2"}"#, r#"{"text":"line 3","newline":false}"#]
        );
    }

    #[test]
    fn a_long_text_is_not_cut_inside_a_character() {
        let text = "€".repeat(MAX_PIECE);

        let pieces = events(&[text.as_bytes()]);

        assert!(pieces.len() > 1);
        assert!(pieces.iter().all(|piece| piece.data().contains("text")), "a piece is not UTF-8");
    }

    #[test]
    fn a_prompt_is_given_out_while_it_waits() {
        let mut splitter = Splitter::new("stdout");
        let mut out = Vec::new();
        splitter.push("name? \u{e9}".as_bytes().split_last().expect("bytes").1, &mut out);
        assert!(out.is_empty() && splitter.has_pending());

        splitter.flush(&mut out);

        assert_eq!(out.len(), 1);
        assert_eq!(out[0].data(), r#"{"text":"name? ","newline":false}"#);
        assert!(splitter.has_pending(), "half a character was given out");
    }
}
