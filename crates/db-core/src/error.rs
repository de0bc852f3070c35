//! Errors that say what was tried and what is known, and answer questions.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::{Class, ConfigError, ConnectError};

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
    /// The connection was lost while a commit was under way: the transaction may be committed or not.
    #[error("the connection was lost during commit, so the transaction may be committed or not: {0}")]
    CommitUnknown(StatementError),
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
            Self::Aborted => Class::Other,
            Self::CommitUnknown(_) => Class::Lost,
        }
    }

    /// Whether waiting may mend it. Whether what was asked for may be *repeated* is another question: a
    /// [`Class::Lost`] statement may have been done.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.class().is_transient()
    }

    /// The server's five-character code, when the server spoke.
    #[must_use]
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Statement(error) | Self::CommitUnknown(error) => error.sqlstate(),
            _ => None,
        }
    }

    /// Whether a unique constraint was not met (23505).
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        self.sqlstate().is_some_and(|code| code == "23505")
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
        match error {
            sqlx::Error::Io(io)
                if io
                    .get_ref()
                    .is_some_and(<dyn std::error::Error + Send + Sync + 'static>::is::<AcquireError>) =>
            {
                let inner = io.into_inner().expect("an error that was just seen");
                Self::Acquire(*inner.downcast().expect("the type that was just checked"))
            }
            other => Self::Statement(StatementError(other)),
        }
    }
}

/// A statement failed, on the server or on the way.
///
/// `Display` repeats what the server said, without the line of its C source that sqlx 0.9 adds, and without the
/// text of errors about data (class 22), which quotes the value.
#[derive(Debug)]
pub struct StatementError(pub(crate) sqlx::Error);

impl StatementError {
    /// What the error means for a decision.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::of(&self.0)
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
        other => other.to_string(),
    }
}

/// No connection could be taken from a pool in time.
#[derive(Debug)]
pub struct AcquireError {
    pub(crate) pool: String,
    pub(crate) waited: Duration,
    pub(crate) in_use: u32,
    pub(crate) max: u32,
    pub(crate) at: &'static Location<'static>,
    pub(crate) cause: AcquireCause,
}

#[derive(Debug)]
pub(crate) enum AcquireCause {
    /// Every connection was taken, for the whole time.
    Exhausted,
    /// There was room, but a new connection could not be made.
    Dialling(String),
    Closed,
}

impl AcquireError {
    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Whether the pool was closed: there will be no connection any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.cause, AcquireCause::Closed)
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, waited, in_use, max, at, cause } = self;
        let waited = waited.as_secs_f64();
        match cause {
            AcquireCause::Exhausted => {
                write!(
                    f,
                    "pool `{pool}`: no connection came free within {waited:.1} s, {in_use} of {max} in use"
                )
            }
            AcquireCause::Dialling(said) => {
                write!(f, "pool `{pool}`: no connection could be made within {waited:.1} s: {said}")
            }
            AcquireCause::Closed => write!(f, "pool `{pool}` is closed"),
        }?;
        write!(f, " (asked for at {}:{})", at.file(), at.line())
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
        let ours = AcquireError {
            pool: "api".into(),
            waited: Duration::from_secs(5),
            in_use: 10,
            max: 10,
            at: Location::caller(),
            cause: AcquireCause::Exhausted,
        };

        let back = Error::from(sqlx::Error::from(ours));

        assert!(matches!(&back, Error::Acquire(error) if error.pool() == "api"), "{back:?}");
        assert!(
            back.to_string().starts_with("pool `api`: no connection came free within 5.0 s, 10 of 10 in use")
        );
    }
}
