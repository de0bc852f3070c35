//! Signals that ask the process to end.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{self, SignalKind};

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// SIGHUP: the terminal closed. Many daemons reload their configuration instead.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGQUIT: Ctrl-\.
    Quit,
    /// SIGTERM: what `kill`, systemd, Docker and Kubernetes send.
    Terminate,
}

impl Signal {
    /// The exit code that a shell reports for a process ended by this signal: 128 and its number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Quit => 131,
            Self::Terminate => 143,
        }
    }

    fn kind(self) -> SignalKind {
        match self {
            Self::Hangup => SignalKind::hangup(),
            Self::Interrupt => SignalKind::interrupt(),
            Self::Quit => SignalKind::quit(),
            Self::Terminate => SignalKind::terminate(),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Signals, caught from the moment this value is made.
///
/// From then on these signals do not end the process any more, for as long as it lives: the program has to wait for the
/// [next](Self::next) one, and to end.
#[derive(Debug)]
pub struct Signals {
    caught: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Catches SIGTERM and SIGINT, the usual requests to end a service. SIGHUP is left out, since many services reload on it.
    ///
    /// # Errors
    ///
    /// The operating system refused it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime that drives I/O.
    pub fn catch() -> io::Result<Self> {
        Self::of([Signal::Terminate, Signal::Interrupt])
    }

    /// Catches these signals. Of an empty list, [next](Self::next) waits for ever.
    ///
    /// # Errors
    ///
    /// The operating system refused it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime that drives I/O.
    pub fn of(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let catch = |signal: Signal| Ok((signal, unix::signal(signal.kind())?));
        Ok(Self { caught: signals.into_iter().map(catch).collect::<io::Result<_>>()? })
    }

    /// Waits for the next signal. A signal that came earlier is kept; several of the same kind count as one.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, caught) in &mut self.caught {
                if let Poll::Ready(Some(())) = caught.poll_recv(context) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}
