//! What a pool reports while it works, for metrics and traces.

use std::fmt;
use std::time::Duration;

use crate::error_type::ErrorType;
use crate::{AcquireError, CallSite, CloseReason, ConnectFailure, Holder, sql};

/// Hears what happens in a pool, as it happens. Each method does nothing by default. What only needs to be counted is in
/// [`Totals`](crate::Totals) as well.
///
/// A pool calls its observers when its own state is changed already, and holds no lock. The calls come from the tasks that use the pool, so a
/// method must be quick: it must not block, panic, or use the pool. Without an observer, a report costs one comparison.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use db_core::{Observer, PoolOptions, StatementDone};
///
/// #[derive(Debug, Default)]
/// struct Rows(AtomicU64);
///
/// impl Observer for Rows {
///     fn statement(&self, done: &StatementDone<'_>) {
///         self.0.fetch_add(done.rows, Ordering::Relaxed);
///     }
/// }
///
/// let rows = Arc::new(Rows::default());
/// let options = PoolOptions::api().observer(rows.clone());
/// # drop(options);
/// ```
pub trait Observer: fmt::Debug + Send + Sync {
    /// A caller got a connection.
    fn acquired(&self, acquired: &Acquired) {
        let _ = acquired;
    }

    /// A caller got none. Neither a caller whose future was dropped is reported, nor a [`try_acquire`](crate::Handle::try_acquire) that found
    /// none.
    fn not_acquired(&self, error: &AcquireError) {
        let _ = error;
    }

    /// A connection was given back, to be used again, repaired or closed.
    fn released(&self, released: &Released) {
        let _ = released;
    }

    /// A connection was dialled.
    fn dialled(&self, took: Duration) {
        let _ = took;
    }

    /// A dial failed.
    fn dial_failed(&self, failure: &ConnectFailure) {
        let _ = failure;
    }

    /// A connection is gone. Those of a pool that is dropped without [`close`](crate::Pool::close) are not reported.
    fn closed(&self, why: CloseReason) {
        let _ = why;
    }

    /// A statement has ended, or its time limit has passed. `BEGIN`, `COMMIT` and the like are statements, and so are a `COPY`, and preparing or
    /// describing a statement by itself. Pings and repairs are not, nor is what sqlx's own connection runs. A statement that is sent again
    /// after its plan was found stale is reported twice. One whose future or stream was dropped is not reported;
    /// [`cancelled`](Self::cancelled) may follow.
    fn statement(&self, done: &StatementDone<'_>) {
        let _ = done;
    }

    /// A connection is held for longer than its threshold. Reported once for each checkout.
    fn leaked(&self, holder: &Holder) {
        let _ = holder;
    }

    /// [`Handle::tx_retry`](crate::Handle::tx_retry) repeats a transaction.
    fn retried(&self, retried: &Retried) {
        let _ = retried;
    }

    /// The repair of a connection in an unknown state has ended.
    fn repaired(&self, repaired: &Repaired) {
        let _ = repaired;
    }

    /// An abandoned statement was cancelled on the server.
    fn cancelled(&self) {}
}

/// How long a caller waited for its connection, and for what. All three are zero if a connection was idle and fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Acquired {
    /// Waiting for a connection that others used.
    pub queue: Duration,
    /// Waiting for a connection that was dialled: all of the wait if the pool had room for one more, failed attempts and their pauses
    /// with it; else as much of it as the dial of the new connection took that ended it.
    pub dial: Duration,
    /// Checking connections: a ping, or forgetting stale plans.
    pub verify: Duration,
}

impl Acquired {
    /// All of the wait.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.queue + self.dial + self.verify
    }
}

/// The end of a checkout.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Released {
    /// The call site of the acquire.
    pub at: CallSite,
    /// How long the connection was held.
    pub held: Duration,
}

/// The end of a statement. `Debug` shows its text without literals.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct StatementDone<'s> {
    /// The call site of the acquire.
    pub at: CallSite,
    /// The name that [`Handle::named`](crate::Handle::named) gave.
    pub name: Option<&'static str>,
    /// The statement's text, which may contain literals: see [`redacted`](Self::redacted). Bound values are not in it.
    pub sql: &'s str,
    /// From the first byte sent to the last byte read; for rows that are read one by one, with what the reader took in between.
    pub took: Duration,
    /// Rows that the server returned and the driver read. A statement that was executed only counts none.
    pub rows: u64,
    /// Rows that the server says are affected.
    pub affected: u64,
    /// Why it failed.
    pub error: Option<ErrorType>,
}

impl StatementDone<'_> {
    /// The statement's text without its literals.
    #[must_use]
    pub fn redacted(&self) -> String {
        sql::redact_sql(self.sql)
    }

    /// The whole text on one line, without comments, literals and numbers.
    #[must_use]
    pub fn normalized(&self) -> String {
        sql::normalize(self.sql)
    }
}

impl fmt::Debug for StatementDone<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, name, took, rows, affected, error, .. } = self;
        f.debug_struct("StatementDone")
            .field("at", at)
            .field("name", name)
            .field("sql", &self.redacted())
            .field("took", took)
            .field("rows", rows)
            .field("affected", affected)
            .field("error", error)
            .finish()
    }
}

/// A transaction is about to be repeated.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Retried {
    /// The call site of the handle.
    pub at: CallSite,
    /// The number of the attempt that failed, from 1.
    pub attempt: u32,
    /// Why it failed.
    pub error: ErrorType,
    /// The pause before the next attempt.
    pub pause: Duration,
}

/// The end of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// How long it took.
    pub took: Duration,
    /// Whether the connection may be used again.
    pub is_good: bool,
}
