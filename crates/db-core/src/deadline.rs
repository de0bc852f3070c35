//! Waits that were too long.

use std::fmt;
use std::future::poll_fn;
use std::panic::Location;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

/// Awaits something until then; `None` when it was not done. Under load most answers are there at the first look, and need
/// no timer.
pub(crate) async fn within<T>(
    ends: Option<tokio::time::Instant>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    match (poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await, ends) {
        (Poll::Ready(done), _) => Some(done),
        // In a box, or every statement's future would have room for a timer.
        (Poll::Pending, Some(ends)) => Box::pin(timeout_at(ends, work)).await.ok(),
        (Poll::Pending, None) => Some(work.await),
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

/// The server did not answer a statement in time, or a transaction was open for too long.
///
/// The statement is cancelled on the server, and the transaction rolled back, when the connection is dropped.
#[derive(Debug)]
pub struct DeadlineError {
    pool: String,
    at: &'static Location<'static>,
    after: Duration,
    transaction: bool,
}

impl DeadlineError {
    pub(crate) fn new(pool: &str, at: &'static Location<'static>, limit: Limited) -> Self {
        Self { pool: pool.to_owned(), at, after: limit.after, transaction: limit.transaction }
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Whether it was the limit of the transaction that passed, and not that of the statement.
    #[must_use]
    pub fn is_transaction(&self) -> bool {
        self.transaction
    }
}

impl fmt::Display for DeadlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, at, after, transaction } = self;
        let after = after.as_secs_f64();
        if *transaction {
            write!(f, "pool `{pool}`: the transaction was not done within {after:.1} s, and is rolled back")?;
        } else {
            write!(
                f,
                "pool `{pool}`: the server did not answer a statement within {after:.1} s, and it is cancelled"
            )?;
        }
        write!(f, " (connection asked for at {}:{})", at.file(), at.line())
    }
}

impl std::error::Error for DeadlineError {}

impl From<DeadlineError> for sqlx::Error {
    /// sqlx's `Executor` can only fail with sqlx's error; [`Error`](crate::Error) finds ours again inside.
    fn from(error: DeadlineError) -> Self {
        Self::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error))
    }
}
