//! Printing events.

use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use db_layer::{Event, EventStream, Events};
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::cli::PrintArgs;
use crate::output::{END, End, Piece, STDERR, STDOUT};
use crate::terminal::{json_line, show};

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
