//! Waits that were too long.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Timeout, timeout_at};

use crate::CallSite;

/// Awaits something until then; `None` when it was not done. Under load most answers are there at the first look, and need
/// no timer.
pub(crate) fn within<F: Future + Unpin>(ends: Option<tokio::time::Instant>, work: F) -> Within<F> {
    Within::Untimed { ends, work: Some(work) }
}

/// What [`within`] awaits, and the timer once there is one. Written out, since it is part of every statement's future, and the
/// one of an async function is four times as large.
pub(crate) enum Within<F> {
    Untimed {
        ends: Option<tokio::time::Instant>,
        /// There until it is timed.
        work: Option<F>,
    },
    /// In a box, or there would always be room for a timer.
    Timed(Pin<Box<Timeout<F>>>),
}

impl<F: Future + Unpin> Future for Within<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Self::Untimed { ends, work } = this {
            if let Some(Poll::Ready(done)) = work.as_mut().map(|work| Pin::new(work).poll(cx)) {
                return Poll::Ready(Some(done));
            }
            if let Some((ends, work)) = ends.and_then(|ends| Some((ends, work.take()?))) {
                *this = Self::Timed(Box::pin(timeout_at(ends, work)));
            }
        }
        match this {
            Self::Untimed { .. } => Poll::Pending,
            Self::Timed(timed) => timed.as_mut().poll(cx).map(Result::ok),
        }
    }
}

/// How long a wait for the server may be, and whose limit that is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limited {
    pub(crate) wait: Duration,
    /// The whole of the limit, of which the wait may be the rest.
    after: Duration,
    transaction: bool,
}

impl Limited {
    /// When a wait that began then is over; `None` when that is further away than clocks reach.
    pub(crate) fn ends(&self, began: Instant) -> Option<tokio::time::Instant> {
        began.checked_add(self.wait).map(Into::into)
    }

    pub(crate) fn of_statement(after: Duration) -> Self {
        Self { wait: after, after, transaction: false }
    }

    pub(crate) fn min(self, other: Self) -> Self {
        if self.wait < other.wait { self } else { other }
    }
}

/// When a transaction has to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) at: Instant,
    after: Duration,
}

impl Ends {
    /// `None` when that is further away than clocks reach: never.
    pub(crate) fn after(after: Duration) -> Option<Self> {
        Some(Self { at: Instant::now().checked_add(after)?, after })
    }

    pub(crate) fn limit(&self) -> Limited {
        let wait = self.at.saturating_duration_since(Instant::now());
        Limited { wait, after: self.after, transaction: true }
    }
}

/// The server did not answer a statement in time, or a transaction was open for too long, or a statement that was cut off in it
/// went on for too long.
///
/// The statement is cancelled on the server, and the transaction rolled back, when the connection is dropped.
#[derive(Debug)]
pub struct DeadlineError {
    pool: String,
    at: CallSite,
    after: Duration,
    late: Late,
}

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    Statement,
    Transaction,
    /// A statement whose future was dropped, in a transaction.
    CutOff,
}

impl DeadlineError {
    pub(crate) fn new(pool: &str, at: CallSite, limit: Limited) -> Self {
        let late = if limit.transaction { Late::Transaction } else { Late::Statement };
        Self { pool: pool.to_owned(), at, after: limit.after, late }
    }

    pub(crate) fn of_cut_off(pool: &str, at: CallSite, after: Duration) -> Self {
        Self { pool: pool.to_owned(), at, after, late: Late::CutOff }
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Whether it was the limit of the transaction that passed, and not that of the statement.
    #[must_use]
    pub fn is_transaction(&self) -> bool {
        self.late == Late::Transaction
    }

    /// Whether it was a statement that was cut off before, in a transaction: it has been cancelled, and the transaction has failed
    /// with it.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.late == Late::CutOff
    }
}

impl fmt::Display for DeadlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, at, after, late } = self;
        let after = after.as_secs_f64();
        match late {
            Late::Transaction => write!(
                f,
                "pool `{pool}`: the transaction was not done within {after:.1} s, and is rolled back"
            )?,
            Late::Statement => write!(
                f,
                "pool `{pool}`: the server did not answer a statement within {after:.1} s, and it is cancelled"
            )?,
            Late::CutOff => write!(
                f,
                "pool `{pool}`: a statement that was cut off in the transaction went on for {after:.1} s and was cancelled, \
                 and the transaction has failed with it"
            )?,
        }
        write!(f, " (connection asked for at {at})")
    }
}

impl std::error::Error for DeadlineError {}

impl From<DeadlineError> for sqlx::Error {
    /// sqlx's `Executor` can only fail with sqlx's error; [`Error`](crate::Error) finds ours again inside.
    fn from(error: DeadlineError) -> Self {
        Self::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error))
    }
}
