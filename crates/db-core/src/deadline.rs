//! Time limits of waits for the server.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Timeout, timeout_at};

use crate::CallSite;

/// Awaits `work` until `ends`; `None` if it was not done. Under load most answers are ready at the first poll, and need no timer.
pub(crate) fn within<F: Future + Unpin>(ends: Option<tokio::time::Instant>, work: F) -> Within<F> {
    Within::Untimed { ends, work: Some(work) }
}

/// The future of [`within`], with a timer once it needs one. Written by hand, since it is part of every statement's future, and an
/// async function's future is four times as large.
pub(crate) enum Within<F> {
    Untimed {
        ends: Option<tokio::time::Instant>,
        /// `None` once it is timed.
        work: Option<F>,
    },
    /// Boxed, since the future would otherwise always contain a timer.
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

/// The limit of a wait for the server, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WaitLimit {
    pub(crate) wait: Duration,
    /// The whole limit, of which `wait` may be the rest.
    after: Duration,
    late: Late,
}

impl WaitLimit {
    /// When a wait that began at `began` is over; `None` if that is beyond the clock's range.
    pub(crate) fn ends(&self, began: Instant) -> Option<tokio::time::Instant> {
        began.checked_add(self.wait).map(Into::into)
    }

    pub(crate) fn of_statement(after: Duration) -> Self {
        Self { wait: after, after, late: Late::Statement }
    }

    /// Whether it is the limit of more than one statement, and over: nothing must be sent any more.
    pub(crate) fn is_over(&self) -> bool {
        self.wait.is_zero() && self.late != Late::Statement
    }

    pub(crate) fn min(self, other: Self) -> Self {
        if self.wait < other.wait { self } else { other }
    }
}

/// The deadline of a transaction, or of a caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// The time that a transaction has; `None` for a caller, of whom only the end is known.
    after: Option<Duration>,
}

impl Deadline {
    /// `None` if the deadline is beyond the clock's range: never.
    pub(crate) fn after(after: Duration) -> Option<Self> {
        Some(Self { at: Instant::now().checked_add(after)?, after: Some(after) })
    }

    pub(crate) fn of_caller(at: Instant) -> Self {
        Self { at, after: None }
    }

    pub(crate) fn limit(&self) -> WaitLimit {
        let wait = self.at.saturating_duration_since(Instant::now());
        match self.after {
            Some(after) => WaitLimit { wait, after, late: Late::Transaction },
            None => WaitLimit { wait, after: wait, late: Late::Caller },
        }
    }
}

/// A time limit passed: the server did not answer a statement, a transaction was open for too long, the caller's deadline came, an abandoned statement in a
/// transaction did not end, or a statement of `SeaORM` waited too long for another one on the same session.
///
/// Dropping the connection cancels the statement on the server and rolls back the transaction.
#[derive(Debug, Clone)]
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
    /// All that the caller does.
    Caller,
    /// A statement whose future was dropped, in a transaction.
    Abandoned,
    /// Another statement on the same session.
    #[cfg(feature = "sea-orm")]
    Busy,
}

impl DeadlineError {
    pub(crate) fn new(pool: &str, at: CallSite, limit: WaitLimit) -> Self {
        Self { pool: pool.to_owned(), at, after: limit.after, late: limit.late }
    }

    pub(crate) fn of_abandoned(pool: &str, at: CallSite, after: Duration) -> Self {
        Self { pool: pool.to_owned(), at, after, late: Late::Abandoned }
    }

    #[cfg(feature = "sea-orm")]
    pub(crate) fn of_busy(pool: &str, at: CallSite, after: Duration) -> Self {
        Self { pool: pool.to_owned(), at, after, late: Late::Busy }
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Whether the transaction's limit passed, and not the statement's.
    #[must_use]
    pub fn is_transaction(&self) -> bool {
        self.late == Late::Transaction
    }

    /// Whether the [deadline of the handle](crate::Handle::deadline) passed.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        self.late == Late::Caller
    }

    /// Whether an abandoned statement in a transaction did not end: it was cancelled, which failed the transaction.
    #[must_use]
    pub fn is_abandoned_statement(&self) -> bool {
        self.late == Late::Abandoned
    }
}

impl fmt::Display for DeadlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, at, after, late } = self;
        let after = after.as_secs_f64();
        match late {
            Late::Transaction => write!(
                f,
                "pool `{pool}`: the transaction did not end within {after:.1} s and is rolled back"
            )?,
            Late::Statement => write!(
                f,
                "pool `{pool}`: the server did not answer a statement within {after:.1} s; the statement is cancelled"
            )?,
            Late::Caller => write!(
                f,
                "pool `{pool}`: the caller's deadline has passed; what is not done is cancelled and rolled back"
            )?,
            Late::Abandoned => write!(
                f,
                "pool `{pool}`: an abandoned statement in the transaction did not end within {after:.1} s and was cancelled, which \
                     failed the transaction"
            )?,
            #[cfg(feature = "sea-orm")]
            Late::Busy => write!(
                f,
                "pool `{pool}`: the statement was not sent: another statement, or a stream that is still open, used the session \
                 for {after:.1} s"
            )?,
        }
        write!(f, " (acquire at {at})")
    }
}

impl std::error::Error for DeadlineError {}

impl From<DeadlineError> for sqlx::Error {
    /// sqlx's `Executor` can fail with sqlx's error only. [`Error`](crate::Error)'s `From` unwraps this error again.
    fn from(error: DeadlineError) -> Self {
        Self::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error))
    }
}
