//! Reads the command's two streams.

use std::future::pending;
use std::io;
use std::time::Duration;

use db_layer::NewEvent;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::output::{STDERR, STDOUT, Splitter};

/// The size of a pipe's buffer.
const CHUNK: usize = 64 << 10;
/// How long the beginning of a line waits for its end before it is shown.
const PATIENCE: Duration = Duration::from_millis(300);

/// Reads both streams to their ends, and sends events in the order of reading. After `stop` it still reads what the pipes hold,
/// and then ends.
///
/// While the receiver takes no events, nothing is read, and the command has to wait as with any full pipe.
pub(super) async fn read(
    stdout: ChildStdout,
    stderr: ChildStderr,
    chunks: Sender<Vec<NewEvent>>,
    stop: CancellationToken,
) {
    let mut stdout = Source::new(stdout, STDOUT);
    let mut stderr = Source::new(stderr, STDERR);
    while stdout.is_open() || stderr.is_open() {
        let mut events = Vec::new();
        let (show_stdout, show_stderr) = (stdout.show_at, stderr.show_at);
        let read = async {
            // In random order, so that neither stream starves the other.
            tokio::select! {
                read = stdout.read() => Read::Stdout(read),
                read = stderr.read() => Read::Stderr(read),
            }
        };
        tokio::select! {
            biased;
            // Data first: it may hold the end of a line.
            read = read => match read {
                Read::Stdout(read) => stdout.take(read, &mut events),
                Read::Stderr(read) => stderr.take(read, &mut events),
            },
            () = until(show_stdout) => stdout.show(&mut events),
            () = until(show_stderr) => stderr.show(&mut events),
            () = stop.cancelled() => {
                stdout.end(&mut events);
                stderr.end(&mut events);
            }
        }
        if !events.is_empty() && chunks.send(events).await.is_err() {
            return;
        }
    }
}

/// Which stream was read, and how many bytes.
enum Read {
    Stdout(io::Result<usize>),
    Stderr(io::Result<usize>),
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
    /// When a held back beginning of a line is shown without its end.
    show_at: Option<Instant>,
}

impl<R: AsyncRead + Unpin> Source<R> {
    fn new(pipe: R, kind: &'static str) -> Self {
        Self { pipe: Some(pipe), buffer: vec![0; CHUNK].into(), lines: Splitter::new(kind), show_at: None }
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Reads once; waits for ever after the end of the stream. Cancel safe.
    async fn read(&mut self) -> io::Result<usize> {
        match &mut self.pipe {
            Some(pipe) => pipe.read(&mut self.buffer).await,
            None => pending().await,
        }
    }

    fn take(&mut self, read: io::Result<usize>, events: &mut Vec<NewEvent>) {
        match read {
            Ok(bytes @ 1..) => {
                self.lines.push(&self.buffer[..bytes], events);
                // Counted from the line's beginning, so that output without line ends is shown, too.
                let same_line = self.show_at.filter(|_| events.is_empty());
                let moment = || same_line.unwrap_or_else(|| Instant::now() + PATIENCE);
                self.show_at = self.lines.has_pending().then(moment);
            }
            ended => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "cannot read the command's output");
                }
                self.end(events);
            }
        }
    }

    /// After it, only an incomplete character is held back.
    fn show(&mut self, events: &mut Vec<NewEvent>) {
        self.show_at = None;
        self.lines.flush(events);
    }

    fn end(&mut self, events: &mut Vec<NewEvent>) {
        self.pipe = None;
        self.show_at = None;
        self.lines.finish(events);
    }
}
