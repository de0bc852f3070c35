//! What may be wrong with a session that was lent as sqlx's own, or on which a `COPY` did not end.

use std::fmt;

use crate::{CallSite, Class, Repeat};

/// A statement was not sent: its session was lent by [`as_sqlx`](crate::Session::as_sqlx), and did not come back as it was, or a
/// [`COPY`](crate::Session::copy_in) on it did not come to its end.
#[derive(Debug)]
pub struct LentError {
    pool: String,
    at: CallSite,
    found: Found,
}

/// How a session came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It gives each statement the answer of another. Nobody can set that right.
    OutOfStep,
    /// In a transaction that is not ours.
    Open,
    /// Without the transaction that it was lent in.
    Ended,
    /// Not lent, but closed, since a COPY on it did not come to its end.
    CutCopy,
}

impl LentError {
    pub(crate) fn new(pool: &str, at: CallSite, found: Found) -> Self {
        Self { pool: pool.to_owned(), at, found }
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Whether the session gives each statement the answer of another, as after a `COPY` that did not end as it should. The
    /// connection is closed when it is dropped, and a transaction on it rolled back.
    #[must_use]
    pub fn is_out_of_step(&self) -> bool {
        self.found == Found::OutOfStep
    }

    pub(crate) fn repeat(&self) -> Repeat {
        match self.found {
            // The statement was not done, but what was done through `as_sqlx` may have been.
            Found::OutOfStep | Found::CutCopy => Repeat::IfHarmless,
            Found::Open | Found::Ended => Repeat::Never,
        }
    }

    pub(crate) fn class(&self) -> Class {
        match self.found {
            Found::OutOfStep | Found::CutCopy => Class::Lost,
            Found::Open | Found::Ended => Class::Other,
        }
    }
}

impl fmt::Display for LentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, at, found } = self;
        let found = match found {
            Found::OutOfStep => {
                "the session that was lent by `as_sqlx` gives each statement the answer of another, as after a COPY that \
                 did not end as it should; the connection is closed"
            }
            Found::Open => "a transaction that was begun through `as_sqlx` is still open",
            Found::Ended => "the transaction was ended through `as_sqlx`",
            Found::CutCopy => "a COPY on the session did not come to its end, and the connection was closed",
        };
        write!(f, "pool `{pool}`: the statement was not sent: {found} (connection asked for at {at})")
    }
}

impl std::error::Error for LentError {}

impl From<LentError> for sqlx::Error {
    /// sqlx's `Executor` can only fail with sqlx's error; [`Error`](crate::Error) finds ours again inside.
    fn from(error: LentError) -> Self {
        match error.found {
            Found::OutOfStep | Found::CutCopy => Self::Io(std::io::Error::other(error)),
            // Not one of the network's, which would be worth another try.
            Found::Open | Found::Ended => Self::Configuration(Box::new(error)),
        }
    }
}
