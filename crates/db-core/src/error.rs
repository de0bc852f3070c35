//! Errors that say what was tried and what is known, and answer questions.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::class::{Repeat, Verdict};
use crate::{
    CallSite, Class, ConfigError, ConnectError, DeadlineError, Holder, LentError, PoolerError, Stats,
};

/// Anything that can go wrong between a service and its database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No connection was to be had from the pool.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// A statement failed.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// A transaction was to be committed in which a statement had failed. The server rolled it back.
    #[error("the transaction was rolled back instead of committed: a statement in it had failed")]
    Aborted,
    /// There was no answer to a commit: the transaction may be committed or not.
    #[error("the answer to the commit was lost, so the transaction may be committed or not: {0}")]
    CommitUnknown(StatementError),
    /// There was no answer to a commit, and the server, asked afterwards, said that the transaction was rolled back.
    #[error("the answer to the commit was lost, and the transaction was rolled back: {0}")]
    RolledBack(StatementError),
    /// A statement or a transaction took longer than it may.
    #[error(transparent)]
    Deadline(#[from] DeadlineError),
    /// A statement was not sent, since it would do harm behind a pooler.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    /// A statement, or a commit, was not sent, since the session did not come back from [`as_sqlx`](crate::Session::as_sqlx) as
    /// it was, or a [`COPY`](crate::Session::copy_in) on it did not come to its end.
    #[error(transparent)]
    Lent(#[from] LentError),
}

impl Error {
    /// What the error means for a decision.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Config(_) => Class::Refused,
            Self::Connect(error) if error.failure().is_final() => Class::Refused,
            // It was closed on purpose, and will not open again.
            Self::Acquire(error) if error.is_closed() => Class::Other,
            Self::Connect(_) | Self::Acquire(_) => Class::NotReached,
            Self::Statement(error) => error.class(),
            Self::Aborted | Self::Pooler(_) => Class::Other,
            Self::CommitUnknown(_) => Class::Lost,
            Self::RolledBack(_) => Class::Conflict,
            Self::Deadline(_) => Class::TimedOut,
            Self::Lent(error) => error.class(),
        }
    }

    /// Whether what failed may be tried again.
    #[must_use]
    pub fn repeat(&self) -> Repeat {
        match self {
            Self::Config(_) | Self::Aborted | Self::Pooler(_) | Self::Deadline(_) => Repeat::Never,
            Self::Connect(error) if error.failure().is_final() => Repeat::Never,
            Self::Acquire(error) if error.is_closed() => Repeat::Never,
            Self::Connect(_) | Self::Acquire(_) => Repeat::Later,
            Self::Statement(error) => error.repeat(),
            Self::CommitUnknown(_) => Repeat::IfHarmless,
            Self::RolledBack(_) => Repeat::Soon,
            Self::Lent(error) => error.repeat(),
        }
    }

    /// Whether waiting may mend it. Whether what was asked for may be *repeated* is another question, which
    /// [`Error::repeat`] answers: a [`Class::Lost`] statement may have been done.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.repeat() != Repeat::Never
    }

    /// The server's five-character code, when the server spoke.
    #[must_use]
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Statement(error) | Self::CommitUnknown(error) | Self::RolledBack(error) => error.sqlstate(),
            _ => None,
        }
    }

    /// How long to wait before trying again, where trying again may do: what a web handler puts into `Retry-After`.
    /// `None` for what waiting does not mend, and for what may have been done: to come again would do it twice.
    ///
    /// For a pool whose connections are all taken it is the time in which the queue comes round, judged by recent uses;
    /// while no connection can be made, the pause between attempts; for a transaction that lost against another, next to
    /// nothing.
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

    /// Whether a unique constraint was not met (23505).
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        self.has_code("23505")
    }

    /// Whether a foreign key was not met (23503): a row refers to one that is not there, or is referred to by others.
    #[must_use]
    pub fn is_foreign_key_violation(&self) -> bool {
        self.has_code("23503")
    }

    /// Whether a check constraint was not met (23514).
    #[must_use]
    pub fn is_check_violation(&self) -> bool {
        self.has_code("23514")
    }

    /// Whether a column that must have a value got none (23502).
    #[must_use]
    pub fn is_not_null_violation(&self) -> bool {
        self.has_code("23502")
    }

    /// Whether an exclusion constraint was not met (23P01), such as two bookings of one room that overlap.
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
        matches!(self, Self::Statement(StatementError(sqlx::Error::RowNotFound)))
    }

    /// The name of the constraint that was not met, when the server gave one.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Statement(error) => error.0.as_database_error()?.constraint(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    /// Takes back an error of ours that travelled through sqlx's `Executor`; wraps any other.
    fn from(error: sqlx::Error) -> Self {
        let io = match error {
            sqlx::Error::Io(io) => io,
            sqlx::Error::Configuration(other) => {
                let other = match other.downcast::<PoolerError>() {
                    Ok(ours) => return Self::Pooler(*ours),
                    Err(other) => other,
                };
                return match other.downcast::<LentError>() {
                    Ok(ours) => Self::Lent(*ours),
                    Err(other) => Self::Statement(StatementError(sqlx::Error::Configuration(other))),
                };
            }
            other => return Self::Statement(StatementError(other)),
        };
        let io = match io.downcast::<AcquireError>() {
            Ok(ours) => return Self::Acquire(ours),
            Err(io) => io,
        };
        let io = match io.downcast::<LentError>() {
            Ok(ours) => return Self::Lent(ours),
            Err(io) => io,
        };
        match io.downcast::<DeadlineError>() {
            Ok(ours) => Self::Deadline(ours),
            Err(io) => Self::Statement(StatementError(sqlx::Error::Io(io))),
        }
    }
}

/// A statement failed, on the server or on the way.
///
/// `Display` repeats what the server said, without the line of its C source that sqlx 0.9 adds, and without the
/// text of errors about data (class 22), which quotes the value. So does `Debug`.
pub struct StatementError(pub(crate) sqlx::Error);

impl StatementError {
    /// What the error means for a decision.
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

    /// The server's five-character code, when the server spoke.
    #[must_use]
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        self.0.as_database_error()?.code()
    }

    /// The driver's error, with everything the server said: detail and hint may quote values.
    #[must_use]
    pub fn as_sqlx(&self) -> &sqlx::Error {
        &self.0
    }
}

impl fmt::Display for StatementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sqlstate() {
            Some(code) => write!(f, "the statement failed: {} ({code})", said(&self.0)),
            None => write!(f, "the statement failed: {}", said(&self.0)),
        }
    }
}

impl fmt::Debug for StatementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatementError")
            .field("class", &self.class())
            .field("sqlstate", &self.sqlstate())
            .field("said", &said(&self.0))
            .finish()
    }
}

impl std::error::Error for StatementError {}

/// What a driver error says to a reader: no C line number, no value.
pub(crate) fn said(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            if database.code().is_some_and(|code| code.starts_with("22")) {
                "a value does not fit".to_owned()
            } else {
                database.message().to_owned()
            }
        }
        sqlx::Error::Io(io) => io.to_string(),
        sqlx::Error::Tls(tls) => tls.to_string(),
        // What decoders and encoders say may quote the value.
        sqlx::Error::ColumnDecode { index, .. } => format!("column {index} could not be decoded"),
        sqlx::Error::Decode(_) => "a value could not be decoded".to_owned(),
        sqlx::Error::Encode(_) => "a parameter could not be encoded".to_owned(),
        other => other.to_string(),
    }
}

/// No connection could be taken from a pool.
///
/// `Display` tells the whole story: what was waited for and how long, how full the pool is, who has held a connection for
/// longest and where it was taken, whether the one who asks holds one already, and why none could be made.
#[derive(Debug)]
pub struct AcquireError(Box<Explained>);

/// What an [`AcquireError`] knows.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) pool: String,
    pub(crate) phase: AcquirePhase,
    pub(crate) waited: Duration,
    pub(crate) stats: Stats,
    pub(crate) at: CallSite,
    pub(crate) oldest: Option<Holder>,
    pub(crate) own: Option<CallSite>,
    pub(crate) last_failure: Option<(String, Duration)>,
    pub(crate) turn: Duration,
}

/// What was waited for when the time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcquirePhase {
    /// All connections were taken, and none came back in time.
    Queue,
    /// There was room for another connection, but it could not be made.
    Dial,
    /// There were connections, but they gave no sign of life.
    Verify,
    /// Nothing: so many waited already that another one was [turned away](crate::PoolOptions::max_waiting).
    Shed,
    /// Nothing: the pool is closed, and there will be no connection any more.
    Closed,
}

impl AcquireError {
    pub(crate) fn new(explained: Explained) -> Self {
        Self(Box::new(explained))
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.0.pool
    }

    /// What was waited for.
    #[must_use]
    pub fn phase(&self) -> AcquirePhase {
        self.0.phase
    }

    /// How long it was waited for.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.0.waited
    }

    /// How the pool stood when it was given up.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Who had held a connection for longest then.
    #[must_use]
    pub fn oldest_holder(&self) -> Option<&Holder> {
        self.0.oldest.as_ref()
    }

    /// Where the task that waited had itself taken a connection of the same pool, if it holds one.
    #[must_use]
    pub fn holds_one_taken_at(&self) -> Option<CallSite> {
        self.0.own
    }

    /// What the last failed attempt to make a connection met, and how long ago.
    #[must_use]
    pub fn last_dial_failure(&self) -> Option<(&str, Duration)> {
        self.0.last_failure.as_ref().map(|(failure, ago)| (failure.as_str(), *ago))
    }

    /// Whether the pool was closed: there will be no connection any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.phase == AcquirePhase::Closed
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.0.phase {
            AcquirePhase::Queue | AcquirePhase::Shed => {
                Some(self.0.turn.clamp(Duration::from_secs(1), Duration::from_secs(30)))
            }
            AcquirePhase::Dial | AcquirePhase::Verify => Some(Duration::from_secs(1)),
            AcquirePhase::Closed => None,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explained { pool, phase, waited, stats, at, oldest, own, last_failure, .. } = &*self.0;
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
                "pool `{pool}`: no connection could be made within {waited:.1} s, {in_use} of {max} in use, {dialling} \
                 being made, {repairing} in repair"
            ),
            AcquirePhase::Verify => {
                write!(f, "pool `{pool}`: no connection gave a sign of life within {waited:.1} s")
            }
            AcquirePhase::Shed => write!(
                f,
                "pool `{pool}`: turned away at once, {in_use} of {max} in use and {waiting} waiting, which is as many as may"
            ),
            AcquirePhase::Closed => {
                return write!(f, "pool `{pool}` is closed (asked for at {at})");
            }
        }?;
        if let Some((failure, ago)) = last_failure {
            write!(f, "; the last attempt to make one failed {:.1} s ago: {failure}", ago.as_secs_f64())?;
        }
        if let Some(oldest) = oldest {
            write!(f, "; held for longest: {oldest}")?;
        }
        if let Some(own) = own {
            write!(f, "; this task holds one itself, taken at {own}")?;
        }
        write!(f, " (asked for at {at})")
    }
}

impl std::error::Error for AcquireError {}

impl From<AcquireError> for sqlx::Error {
    /// sqlx's `Executor` can only fail with sqlx's error; [`Error`] finds ours again inside.
    fn from(error: AcquireError) -> Self {
        Self::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acquire_error_survives_the_way_through_sqlx() {
        let ours = AcquireError::new(Explained {
            pool: "api".into(),
            phase: AcquirePhase::Queue,
            waited: Duration::from_secs(5),
            stats: Stats { in_use: 10, max: 10, waiting: 3, ..Stats::default() },
            at: CallSite::caller(),
            oldest: None,
            own: None,
            last_failure: None,
            turn: Duration::from_millis(1),
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
        assert_eq!(back.retry_after(), Some(Duration::from_secs(1)), "a second at least");
    }
}
