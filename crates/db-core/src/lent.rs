//! Problems with a session after a loan of sqlx's own connection, or after an unfinished `COPY`.

use std::fmt;

use crate::{CallSite, Class, Repeat};

/// A statement was not sent: its session was lent by [`as_sqlx`](crate::Session::as_sqlx) and came back in another state, or a
/// [`COPY`](crate::Session::copy_in) on the session was not finished.
#[derive(Debug, Clone)]
pub struct LentError {
    pool: String,
    at: CallSite,
    problem: LentProblem,
}

/// What is wrong with the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LentProblem {
    /// It answers each statement with the answer of another. This cannot be repaired.
    OutOfStep,
    /// A transaction that was begun through the loan is still open.
    StillOpen,
    /// The transaction in which it was lent was ended through the loan.
    Ended,
    /// The connection was closed because of an unfinished COPY.
    UnfinishedCopy,
}

impl LentError {
    pub(crate) fn new(pool: &str, at: CallSite, problem: LentProblem) -> Self {
        Self { pool: pool.to_owned(), at, problem }
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Whether the session answers each statement with the answer of another, as after a `COPY` that did not end properly. The
    /// connection is closed when it is dropped, and a transaction on it rolled back.
    #[must_use]
    pub fn is_out_of_step(&self) -> bool {
        self.problem == LentProblem::OutOfStep
    }

    pub(crate) fn repeat(&self) -> Repeat {
        match self.problem {
            // The statement was not sent, but statements through `as_sqlx` may have taken effect.
            LentProblem::OutOfStep | LentProblem::UnfinishedCopy => Repeat::IfHarmless,
            LentProblem::StillOpen | LentProblem::Ended => Repeat::Never,
        }
    }

    pub(crate) fn class(&self) -> Class {
        match self.problem {
            LentProblem::OutOfStep | LentProblem::UnfinishedCopy => Class::Lost,
            LentProblem::StillOpen | LentProblem::Ended => Class::Other,
        }
    }
}

impl fmt::Display for LentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, at, problem } = self;
        let problem = match problem {
            LentProblem::OutOfStep => {
                "after `as_sqlx`, the session answers each statement with the answer of another, as after a COPY that did not \
                         end properly; the connection is closed"
            }
            LentProblem::StillOpen => "a transaction that was begun through `as_sqlx` is still open",
            LentProblem::Ended => "the transaction was ended through `as_sqlx`",
            LentProblem::UnfinishedCopy => {
                "a COPY on the session was not finished, and the connection was closed"
            }
        };
        write!(f, "pool `{pool}`: the statement was not sent: {problem} (acquire at {at})")
    }
}

impl std::error::Error for LentError {}

impl From<LentError> for sqlx::Error {
    /// sqlx's `Executor` can fail with sqlx's error only. [`Error`](crate::Error)'s `From` unwraps this error again.
    fn from(error: LentError) -> Self {
        match error.problem {
            LentProblem::OutOfStep | LentProblem::UnfinishedCopy => Self::Io(std::io::Error::other(error)),
            // Not an I/O error, which would be classified as worth a retry.
            LentProblem::StillOpen | LentProblem::Ended => Self::Configuration(Box::new(error)),
        }
    }
}
