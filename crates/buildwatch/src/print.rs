//! Printing events.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use db_layer::{Event, EventStream, Events};
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::cli::PrintArgs;
use crate::output::{END, End, Piece, STDERR, STDOUT};
use crate::visible;

/// Prints a build's stdout to stdout and its stderr to stderr, or all of its events as JSON to stdout.
pub(crate) struct Printer {
    stdout: Target,
    stderr: Target,
    json: bool,
    end: Option<End>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: i64,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    data: &'a RawValue,
}

impl Printer {
    pub(crate) fn new(args: PrintArgs) -> Self {
        let shown = |is_terminal: bool| is_terminal && !args.raw;
        Self {
            stdout: Target::new(Box::new(io::stdout()), shown(io::stdout().is_terminal())),
            stderr: Target::new(Box::new(io::stderr()), shown(io::stderr().is_terminal())),
            json: args.json,
            end: None,
        }
    }

    /// Prints a stream to its end, or until the reader of stdout has gone, which is no error.
    ///
    /// Returns whether all of it was printed, and the last event, if it was printed.
    ///
    /// A thread writes, since writing to a slow reader blocks. Dropping the future ends the reading; the thread ends after its
    /// current write.
    pub(crate) async fn print_all(mut self, mut events: EventStream) -> anyhow::Result<Printed> {
        let (batches, mut waiting) = mpsc::channel::<Events>(1);
        let printing = tokio::task::spawn_blocking(move || {
            while let Some(batch) = waiting.blocking_recv() {
                self.print(&batch)?;
                if self.stdout.is_closed {
                    break;
                }
            }
            io::Result::Ok(Printed { is_whole: !self.stdout.is_closed, end: self.end })
        });
        while let Some(batch) = events.next_batch().await? {
            if batches.send(batch).await.is_err() {
                break;
            }
        }
        drop(batches);
        printing.await.context("the printing thread failed")?.context("cannot print")
    }

    fn print(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            if &*event.kind == END {
                self.end = serde_json::from_str(&event.data).ok();
            }
            if self.json {
                self.json(event)?;
            } else {
                self.text(event)?;
            }
        }
        self.stdout.flush()?;
        self.stderr.flush()
    }

    fn json(&mut self, event: &Event) -> io::Result<()> {
        let data: &RawValue = serde_json::from_str(&event.data)?;
        let line = Line { id: event.id, kind: &event.kind, at: event.at, data };
        self.stdout.buffer.extend_from_slice(json_line(&line)?.as_bytes());
        self.stdout.buffer.push(b'\n');
        self.stdout.flush_when_full()
    }

    fn text(&mut self, event: &Event) -> io::Result<()> {
        // Stdout and stderr may lead to the same place, where the order of the lines matters.
        let target = match &*event.kind {
            STDOUT => {
                self.stderr.flush()?;
                &mut self.stdout
            }
            STDERR => {
                self.stdout.flush()?;
                &mut self.stderr
            }
            _ => return Ok(()),
        };
        if let Some(piece) = Piece::read(&event.data) {
            target.write(&piece);
        } else {
            tracing::warn!(event = event.id, "skipped an event of an unknown form");
        }
        target.flush_when_full()
    }
}

/// The result of printing a stream.
pub(crate) struct Printed {
    /// False if the reader of stdout has gone.
    pub(crate) is_whole: bool,
    /// The build's end, if its last event was printed.
    pub(crate) end: Option<End>,
}

struct Target {
    out: Box<dyn Write + Send>,
    /// Whether control characters are escaped.
    shown: bool,
    buffer: Vec<u8>,
    is_closed: bool,
}

impl Target {
    const FULL: usize = 64 << 10;

    fn new(out: Box<dyn Write + Send>, shown: bool) -> Self {
        Self { out, shown, buffer: Vec::new(), is_closed: false }
    }

    fn write(&mut self, piece: &Piece<'_>) {
        if self.shown {
            let mut bytes = Vec::new();
            piece.write_to(&mut bytes);
            show(&bytes, &mut self.buffer);
        } else {
            piece.write_to(&mut self.buffer);
        }
    }

    fn flush_when_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < Self::FULL { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = if self.is_closed {
            Ok(())
        } else {
            self.out.write_all(&self.buffer).and_then(|()| self.out.flush())
        };
        self.buffer.clear();
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// JSON on one line, safe for a terminal: serde escapes the control characters below U+0020; this also escapes the others and
/// invisible characters.
pub(crate) fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    let line = serde_json::to_string(value)?;
    let is_escaped = |character: char| character.is_control() || visible::is_hidden(character);
    if !line.contains(is_escaped) {
        return Ok(line);
    }
    Ok(line.chars().fold(String::with_capacity(line.len() + 5), |mut escaped, character| {
        if is_escaped(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("writing to a string");
            }
        } else {
            escaped.push(character);
        }
        escaped
    }))
}

/// A message, escaped to one line.
pub(crate) fn shown(message: &str) -> String {
    shown_lines(&message.replace('\n', "\\n"))
}

/// A message of one or more lines, escaped.
pub(crate) fn shown_lines(message: &str) -> String {
    let mut bytes = Vec::new();
    show(message.as_bytes(), &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Escapes bytes so that a terminal shows them all and interprets only line ends and tabs: a control character as `cat -v`
/// shows it, a byte that is not UTF-8 as `\xff`, an invisible character by its number.
fn show(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        let mut text = String::with_capacity(chunk.valid().len());
        let mut characters = chunk.valid().chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\n' | '\t' => text.push(character),
                // The line end of other systems.
                '\r' if characters.peek() == Some(&'\n') => text.push(character),
                '\0'..='\x1f' => {
                    text.push('^');
                    text.push(char::from(character as u8 + b'@'));
                }
                '\x7f' => text.push_str("^?"),
                '\u{80}'..='\u{9f}' => {
                    write!(text, "\\u{{{:x}}}", u32::from(character)).expect("writing to a string");
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("writing to a string");
        }
        out.extend_from_slice(if text.is_ascii() { text } else { visible::visible(&text) }.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_control_characters_and_means_the_same() {
        let value = "\u{9b}2J\u{7f}\u{1b}é\u{202e}\u{e0041}";

        let line = json_line(&value).expect("JSON");

        assert_eq!(line, r#""\u009b2J\u007f\u001bé\u202e\udb40\udc41""#);
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), value);
    }

    #[test]
    fn a_terminal_obeys_nothing_of_what_is_shown() {
        let mut shown = Vec::new();

        show(b"\x1b[31mred\x07\r\n\ta\rb\x7f \xc2\x9b2J \xff\x00 \xc3\xa9 \xe2\x80\xae\n", &mut shown);

        assert_eq!(
            String::from_utf8(shown).expect("text"),
            "^[[31mred^G\r\n\ta^Mb^? \\u{9b}2J \\xff^@ é \\u{202e}\n"
        );
    }
}
