//! What errors are counted under.

use std::fmt;

use sqlx::error::DatabaseError;

use crate::Class;
use crate::class::Verdict;

/// What an error is counted under: the server's SQLSTATE, or the [`Class`] of an error that the server did not send. This is
/// OpenTelemetry's `error.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorType(Inner);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inner {
    /// Five digits and capital letters.
    State([u8; 5]),
    Class(Class),
}

impl ErrorType {
    /// A conflict between serializable transactions, and a deadlock: 40001 and 40P01.
    pub const CONFLICTS: [Self; 2] = [Self(Inner::State(*b"40001")), Self(Inner::State(*b"40P01"))];

    /// The type of a statement's error: a network error is [`Class::Lost`], since the statement may have been sent.
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Self {
        let state = error.as_database_error().and_then(DatabaseError::code);
        state
            .and_then(|state| Self::of_state(&state))
            .unwrap_or_else(|| Verdict::of_statement(error).class.into())
    }

    fn of_state(state: &str) -> Option<Self> {
        let state: [u8; 5] = state.as_bytes().try_into().ok()?;
        let is_fit = state.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        is_fit.then_some(Self(Inner::State(state)))
    }

    /// The SQLSTATE, if the server spoke.
    #[must_use]
    pub fn sql_state(&self) -> Option<&str> {
        match &self.0 {
            Inner::State(state) => std::str::from_utf8(state).ok(),
            Inner::Class(_) => None,
        }
    }

    /// The SQLSTATE, or the class in one word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Inner::State(state) => std::str::from_utf8(state).unwrap_or(Class::Other.as_str()),
            Inner::Class(class) => class.as_str(),
        }
    }
}

impl From<Class> for ErrorType {
    fn from(class: Class) -> Self {
        Self(Inner::Class(class))
    }
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_sqlstate_looks_like_is_one() {
        for state in ["40001", "42P01", "ZZ999"] {
            let found = ErrorType::of_state(state).expect(state);
            assert_eq!((found.as_str(), found.sql_state()), (state, Some(state)));
        }
        for other in ["", "4000", "400011", "4000é", "abcde", "40 01", "40\n01"] {
            assert_eq!(ErrorType::of_state(other), None, "{other:?}");
        }
    }

    #[test]
    fn an_error_that_the_server_did_not_send_has_its_class() {
        let lost = ErrorType::of(&sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()));

        assert_eq!((lost.as_str(), lost.sql_state()), ("lost", None));
    }
}
