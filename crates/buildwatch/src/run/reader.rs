//! Reading the command's two streams.

use std::future::pending;
use std::io;
use std::time::Duration;

use db_layer::NewEvent;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};

use crate::output::{STDERR, STDOUT, Splitter};

/// As much as a pipe holds.
const CHUNK: usize = 64 << 10;
/// How long the beginning of a line waits for its end before it is shown.
const PATIENCE: Duration = Duration::from_millis(100);

/// Reads both streams to their ends, and sends what was read as events, in the order in which it was read.
///
/// While nobody takes the events, nothing is read, and the command has to wait as with any full pipe.
pub(super) async fn read(stdout: ChildStdout, stderr: ChildStderr, chunks: Sender<Vec<NewEvent>>) {
    let mut stdout = Source::new(stdout, STDOUT);
    let mut stderr = Source::new(stderr, STDERR);
    let mut show_at = None;
    while stdout.is_open() || stderr.is_open() {
        let mut events = Vec::new();
        tokio::select! {
            read = stdout.read() => stdout.take(read, &mut events),
            read = stderr.read() => stderr.take(read, &mut events),
            () = until(show_at) => {
                stdout.lines.flush(&mut events);
                stderr.lines.flush(&mut events);
            }
        }
        let held_back = stdout.lines.has_pending() || stderr.lines.has_pending();
        show_at = held_back.then(|| Instant::now() + PATIENCE);
        if !events.is_empty() && chunks.send(events).await.is_err() {
            return;
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

struct Source<R> {
    pipe: Option<R>,
    buffer: Box<[u8]>,
    lines: Splitter,
}

impl<R: AsyncRead + Unpin> Source<R> {
    fn new(pipe: R, kind: &'static str) -> Self {
        Self { pipe: Some(pipe), buffer: vec![0; CHUNK].into(), lines: Splitter::new(kind) }
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Reads once; for ever when the stream has ended. Cancel safe.
    async fn read(&mut self) -> io::Result<usize> {
        match &mut self.pipe {
            Some(pipe) => pipe.read(&mut self.buffer).await,
            None => pending().await,
        }
    }

    fn take(&mut self, read: io::Result<usize>, events: &mut Vec<NewEvent>) {
        match read {
            Ok(bytes @ 1..) => self.lines.push(&self.buffer[..bytes], events),
            ended => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "cannot read the command's output");
                }
                self.pipe = None;
                self.lines.finish(events);
            }
        }
    }
}
