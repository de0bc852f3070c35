//! Error types. Each says what was attempted and what is known, and has methods that answer questions.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::call_site::At;
use crate::class::{Repeat, Verdict};
use crate::redact::redacted;
use crate::{
    CallSite, Class, ConfigError, ConnectError, DeadlineError, ErrorType, Holder, LentError, PoolerError,
    Stats,
};

/// Anything that can go wrong between a service and its database.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The pool could not provide a connection.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// A statement failed.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// A transaction could not be committed because a statement in it had failed. The server rolled it back.
    #[error("the transaction was rolled back instead of committed: a statement in it had failed")]
    Aborted,
    /// The answer to a commit was lost: the transaction may or may not be committed.
    #[error("the answer to the commit was lost, so the transaction may or may not be committed: {0}")]
    CommitUnknown(StatementError),
    /// The answer to a commit was lost. The server, asked afterwards, reported that the transaction was rolled back.
    #[error("the answer to the commit was lost, and the transaction was rolled back: {0}")]
    RolledBack(StatementError),
    /// A statement or a transaction exceeded its time limit.
    #[error(transparent)]
    Deadline(#[from] DeadlineError),
    /// A statement was not sent because it is unsafe behind a pooler.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    /// A statement or a commit was not sent: [`as_sqlx`](crate::Session::as_sqlx) left the session in another state than it
    /// found it, or a [`COPY`](crate::Session::copy_in) on the session was not finished.
    #[error(transparent)]
    Lent(#[from] LentError),
    /// `SeaORM` failed without an error of the driver, or the end of an outer transaction of `SeaORM` had ended this one.
    #[cfg(feature = "sea-orm")]
    #[error(transparent)]
    Orm(#[from] crate::orm::OrmError),
}

impl Error {
    /// The kind of error, for decisions.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Config(_) => Class::Refused,
            Self::Connect(error) if error.failure().is_final() => Class::Refused,
            // The pool was closed on purpose and will not reopen.
            Self::Acquire(error) if error.is_closed() => Class::Other,
            Self::Acquire(error) if error.is_past_deadline() => Class::TimedOut,
            Self::Connect(_) | Self::Acquire(_) => Class::NotReached,
            Self::Statement(error) => error.class(),
            Self::Aborted | Self::Pooler(_) => Class::Other,
            Self::CommitUnknown(_) => Class::Lost,
            Self::RolledBack(_) => Class::Conflict,
            Self::Deadline(_) => Class::TimedOut,
            Self::Lent(error) => error.class(),
            #[cfg(feature = "sea-orm")]
            Self::Orm(error) => error.class(),
        }
    }

    /// Whether the failed work may be tried again.
    #[must_use]
    pub fn repeat(&self) -> Repeat {
        match self {
            Self::Config(_) | Self::Aborted | Self::Pooler(_) | Self::Deadline(_) => Repeat::Never,
            Self::Connect(error) if error.failure().is_final() => Repeat::Never,
            Self::Acquire(error) if error.is_closed() || error.is_past_deadline() => Repeat::Never,
            Self::Connect(_) | Self::Acquire(_) => Repeat::Later,
            Self::Statement(error) => error.repeat(),
            Self::CommitUnknown(_) => Repeat::IfHarmless,
            Self::RolledBack(_) => Repeat::Soon,
            Self::Lent(error) => error.repeat(),
            #[cfg(feature = "sea-orm")]
            Self::Orm(error) => error.repeat(),
        }
    }

    /// Whether waiting may help. Whether the work may be *repeated* is another question, see [`Error::repeat`]: a
    /// [`Class::Lost`] statement may have taken effect.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.repeat() != Repeat::Never
    }

    /// The server's five-character SQLSTATE, if the server reported the error.
    #[must_use]
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Statement(error) | Self::CommitUnknown(error) | Self::RolledBack(error) => error.sqlstate(),
            _ => None,
        }
    }

    /// What the error is counted under: the SQLSTATE, or the class of an error that the server did not send.
    #[must_use]
    pub fn error_type(&self) -> ErrorType {
        match self {
            Self::Statement(error) | Self::CommitUnknown(error) | Self::RolledBack(error) => {
                ErrorType::of(error.as_sqlx())
            }
            other => other.class().into(),
        }
    }

    /// How long to wait before trying again: the value for a web handler's `Retry-After`. `None` if waiting does not help, or if
    /// the work may have taken effect and a repetition would do it twice.
    ///
    /// For a pool whose connections are all in use: the time in which the queue drains, estimated from recent checkouts (1 s to
    /// 30 s). While no connection can be dialled: 1 s. For a transaction that lost against another: 10 ms.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Acquire(error) => error.retry_after(),
            _ => match self.repeat() {
                Repeat::Later => Some(Duration::from_secs(1)),
                Repeat::Soon => Some(Duration::from_millis(10)),
                Repeat::Never | Repeat::IfHarmless => None,
            },
        }
    }

    /// Whether a unique constraint was violated (23505).
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        self.has_code("23505")
    }

    /// Whether a foreign key was violated (23503): a row refers to a missing row, or other rows refer to it.
    #[must_use]
    pub fn is_foreign_key_violation(&self) -> bool {
        self.has_code("23503")
    }

    /// Whether a check constraint was violated (23514).
    #[must_use]
    pub fn is_check_violation(&self) -> bool {
        self.has_code("23514")
    }

    /// Whether a `not null` column got no value (23502).
    #[must_use]
    pub fn is_not_null_violation(&self) -> bool {
        self.has_code("23502")
    }

    /// Whether an exclusion constraint was violated (23P01), for example by two overlapping bookings of one room.
    #[must_use]
    pub fn is_exclusion_violation(&self) -> bool {
        self.has_code("23P01")
    }

    fn has_code(&self, code: &str) -> bool {
        self.sqlstate().is_some_and(|found| found == code)
    }

    /// Whether a query that had to return a row returned none.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Statement(error) => matches!(error.as_sqlx(), sqlx::Error::RowNotFound),
            #[cfg(feature = "sea-orm")]
            Self::Orm(error) => error.is_not_found(),
            _ => false,
        }
    }

    /// The name of the violated constraint, if the server gave one.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Statement(error) => error.0.as_database_error()?.constraint(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    /// Recovers an error of this crate that was passed through sqlx's `Executor`; wraps any other.
    fn from(error: sqlx::Error) -> Self {
        Self::of_driver(Arc::new(error))
    }
}

impl Error {
    /// The same for a shared error.
    pub(crate) fn of_driver(error: Arc<sqlx::Error>) -> Self {
        Self::inside(&error).unwrap_or_else(|| Self::Statement(StatementError(error)))
    }

    /// The error of this crate inside of an error of sqlx, if there is one.
    fn inside(error: &sqlx::Error) -> Option<Self> {
        let inside: &(dyn std::error::Error + 'static) = match error {
            sqlx::Error::Io(io) => io.get_ref()?,
            sqlx::Error::Configuration(other) => &**other,
            _ => return None,
        };
        None.or_else(|| inside.downcast_ref().cloned().map(Self::Acquire))
            .or_else(|| inside.downcast_ref().cloned().map(Self::Deadline))
            .or_else(|| inside.downcast_ref().cloned().map(Self::Pooler))
            .or_else(|| inside.downcast_ref().cloned().map(Self::Lent))
            .or_else(|| inside.downcast_ref::<Self>().cloned())
    }
}

/// A statement failed, on the server or on the connection to it.
///
/// `Display` and `Debug` show the server's message. They leave out the line of the server's C source, which sqlx 0.9 adds, and
/// the message of data errors (class 22), which quotes the value.
#[derive(Clone)]
pub struct StatementError(pub(crate) Arc<sqlx::Error>);

impl StatementError {
    pub(crate) fn new(error: sqlx::Error) -> Self {
        Self(Arc::new(error))
    }

    /// The kind of error, for decisions.
    #[must_use]
    pub fn class(&self) -> Class {
        self.verdict().class
    }

    /// Whether the statement may be tried again, alone or with its transaction.
    #[must_use]
    pub fn repeat(&self) -> Repeat {
        self.verdict().repeat
    }

    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::of_statement(&self.0)
    }

    /// The server's five-character SQLSTATE, if the server reported the error.
    #[must_use]
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        self.0.as_database_error()?.code()
    }

    /// The driver's error with the server's whole answer. Its detail and hint may quote values.
    #[must_use]
    pub fn as_sqlx(&self) -> &sqlx::Error {
        &self.0
    }
}

impl fmt::Display for StatementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sqlstate() {
            Some(code) => write!(f, "the statement failed: {} ({code})", redacted(&self.0)),
            None => write!(f, "the statement failed: {}", redacted(&self.0)),
        }
    }
}

impl fmt::Debug for StatementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatementError")
            .field("class", &self.class())
            .field("sqlstate", &self.sqlstate())
            .field("message", &redacted(&self.0))
            .finish()
    }
}

impl std::error::Error for StatementError {}

/// The pool could not provide a connection.
///
/// `Display` shows what was waited for and how long, the pool's numbers, the oldest checkout and its call site, whether this
/// task already holds a connection, and the last dial failure.
#[derive(Debug, Clone)]
pub struct AcquireError(Arc<AcquireDetails>);

/// The content of an [`AcquireError`].
#[derive(Debug)]
pub(crate) struct AcquireDetails {
    pub(crate) pool: String,
    pub(crate) phase: AcquirePhase,
    pub(crate) waited: Duration,
    pub(crate) stats: Stats,
    pub(crate) at: CallSite,
    pub(crate) name: Option<&'static str>,
    pub(crate) oldest: Option<Holder>,
    pub(crate) own: Option<CallSite>,
    pub(crate) last_failure: Option<(String, Duration)>,
    pub(crate) is_past_deadline: bool,
    /// The estimated time in which the queue drains.
    pub(crate) queue_time: Duration,
}

/// What the caller was waiting for when the time limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcquirePhase {
    /// All connections were in use, and none was returned in time.
    Queue,
    /// The pool had room for another connection, but dialling failed.
    Dial,
    /// The idle connections did not answer a ping.
    Verify,
    /// Nothing: [`max_waiting`](crate::PoolOptions::max_waiting) callers were waiting already. A [patient](crate::Handle::patient) caller may
    /// have waited until another took its place.
    Shed,
    /// All connections were in use, and for a whole [`queue_interval`](crate::PoolOptions::queue_interval) everybody had waited for longer
    /// than [`queue_target`](crate::PoolOptions::queue_target).
    Overloaded,
    /// Nothing: the [deadline of the handle](crate::Handle::deadline) had passed already.
    PastDeadline,
    /// Nothing: the pool is closed for good.
    Closed,
}

impl AcquireError {
    pub(crate) fn new(details: AcquireDetails) -> Self {
        Self(Arc::new(details))
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.0.pool
    }

    /// What the caller was waiting for.
    #[must_use]
    pub fn phase(&self) -> AcquirePhase {
        self.0.phase
    }

    /// How long the caller waited.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.0.waited
    }

    /// The pool's numbers when the caller gave up.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// The oldest checkout at that time.
    #[must_use]
    pub fn oldest_holder(&self) -> Option<&Holder> {
        self.0.oldest.as_ref()
    }

    /// Where the waiting task itself acquired a connection of the same pool, if it holds one.
    #[must_use]
    pub fn holds_one_taken_at(&self) -> Option<CallSite> {
        self.0.own
    }

    /// The last failed attempt to dial a connection, and how long ago it failed.
    #[must_use]
    pub fn last_dial_failure(&self) -> Option<(&str, Duration)> {
        self.0.last_failure.as_ref().map(|(failure, ago)| (failure.as_str(), *ago))
    }

    /// Whether the pool is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.phase == AcquirePhase::Closed
    }

    /// Whether the wait ended because the [deadline of the handle](crate::Handle::deadline) had passed.
    #[must_use]
    pub fn is_past_deadline(&self) -> bool {
        self.0.is_past_deadline
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.0.phase {
            _ if self.is_past_deadline() => None,
            AcquirePhase::Queue | AcquirePhase::Shed | AcquirePhase::Overloaded => {
                Some(self.0.queue_time.clamp(Duration::from_secs(1), Duration::from_secs(30)))
            }
            AcquirePhase::Dial | AcquirePhase::Verify => Some(Duration::from_secs(1)),
            AcquirePhase::PastDeadline | AcquirePhase::Closed => None,
        }
    }
}

/// A caller that is rejected after this time was not rejected at once.
const DISPLACED: Duration = Duration::from_millis(50);

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AcquireDetails { pool, phase, waited, stats, at, name, oldest, own, last_failure, .. } = &*self.0;
        let at = At(*at, *name);
        let waited = waited.as_secs_f64();
        let Stats { in_use, max, waiting, dialling, repairing, .. } = stats;
        match phase {
            AcquirePhase::Queue => write!(
                f,
                "pool `{pool}`: no connection came free within {waited:.1} s, {in_use} of {max} in use, {waiting} more \
                 waiting"
            ),
            AcquirePhase::Dial => write!(
                f,
                "pool `{pool}`: no connection could be opened within {waited:.1} s, {in_use} of {max} in use, {dialling} \
                 dialling, {repairing} in repair"
            ),
            AcquirePhase::Verify => {
                write!(f, "pool `{pool}`: no connection answered a ping within {waited:.1} s")
            }
            // A patient caller that others have displaced has waited.
            AcquirePhase::Shed if self.0.waited >= DISPLACED => write!(
                f,
                "pool `{pool}`: rejected after {waited:.1} s: another caller took its place, {in_use} of {max} in use and \
                 {waiting} waiting (max_waiting reached)"
            ),
            AcquirePhase::Shed => write!(
                f,
                "pool `{pool}`: rejected immediately: {in_use} of {max} in use and {waiting} already waiting \
                 (max_waiting reached)"
            ),
            AcquirePhase::PastDeadline => {
                return write!(
                    f,
                    "pool `{pool}`: nothing was tried: the caller's deadline had passed (acquire at {at})"
                );
            }
            AcquirePhase::Overloaded => write!(
                f,
                "pool `{pool}`: rejected after {waited:.1} s: everybody waits for longer than queue_target, {in_use} of {max} in \
                 use, {waiting} more waiting"
            ),
            AcquirePhase::Closed => {
                return write!(f, "pool `{pool}` is closed (acquire at {at})");
            }
        }?;
        if self.0.is_past_deadline {
            write!(f, "; the caller's deadline has passed")?;
        }
        if let Some((failure, ago)) = last_failure {
            write!(f, "; the last dial failed {:.1} s ago: {failure}", ago.as_secs_f64())?;
        }
        if let Some(oldest) = oldest {
            write!(f, "; oldest checkout: {oldest}")?;
        }
        if let Some(own) = own {
            write!(f, "; this task already holds a connection, acquired at {own}")?;
        }
        write!(f, " (acquire at {at})")
    }
}

impl std::error::Error for AcquireError {}

impl From<AcquireError> for sqlx::Error {
    /// sqlx's `Executor` can fail with sqlx's error only. [`Error`]'s `From` unwraps this error again.
    fn from(error: AcquireError) -> Self {
        Self::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acquire_error_survives_the_way_through_sqlx() {
        let ours = AcquireError::new(AcquireDetails {
            pool: "api".into(),
            phase: AcquirePhase::Queue,
            waited: Duration::from_secs(5),
            stats: Stats { in_use: 10, max: 10, waiting: 3, ..Stats::default() },
            at: CallSite::caller(),
            name: None,
            oldest: None,
            own: None,
            last_failure: None,
            is_past_deadline: false,
            queue_time: Duration::from_millis(1),
        });

        let back = Error::from(sqlx::Error::from(ours));

        assert!(matches!(&back, Error::Acquire(error) if error.pool() == "api"), "{back:?}");
        let text = back.to_string();
        assert!(
            text.starts_with(
                "pool `api`: no connection came free within 5.0 s, 10 of 10 in use, 3 more waiting"
            ),
            "{text}"
        );
        assert_eq!(back.retry_after(), Some(Duration::from_secs(1)), "at least 1 s");
    }
}
