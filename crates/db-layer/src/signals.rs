//! Being asked to end.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{self, SignalKind};

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// SIGHUP: the terminal closed. Many daemons read their configuration again instead.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGQUIT: Ctrl-\.
    Quit,
    /// SIGTERM: what `kill`, systemd, Docker and Kubernetes send.
    Terminate,
}

impl Signal {
    /// The exit code that a shell gives a process which the signal ended: 128 and its number.
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

/// Signals, caught from the moment this is made.
///
/// From then on, and for as long as the process lives, they do not end it by themselves any more: whoever makes this has to
/// ask for the [next](Self::next) one and to end.
#[derive(Debug)]
pub struct Signals {
    caught: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Catches SIGTERM and SIGINT, which is what a service is asked to end with. Not SIGHUP, which asks many a service for
    /// something else.
    ///
    /// # Errors
    ///
    /// When the operating system refuses it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime that drives I/O.
    pub fn catch() -> io::Result<Self> {
        Self::of([Signal::Terminate, Signal::Interrupt])
    }

    /// Catches these signals; of none, there is never a [next](Self::next) one.
    ///
    /// # Errors
    ///
    /// When the operating system refuses it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime that drives I/O.
    pub fn of(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let catch = |signal: Signal| Ok((signal, unix::signal(signal.kind())?));
        Ok(Self { caught: signals.into_iter().map(catch).collect::<io::Result<_>>()? })
    }

    /// Waits for the next one. One that came while nobody waited is kept; of several of a kind, one.
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
