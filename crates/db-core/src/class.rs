//! What an error means for the one who has to decide what to do next.

use std::io::ErrorKind;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::deadline::DeadlineError;

/// The class of a failed statement or connection attempt.
///
/// The SQLSTATEs are those of PostgreSQL's manual, appendix A, "PostgreSQL Error Codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// No session was made, so nothing was done: refused, not found, starting up, too many connections. Safe to
    /// repeat.
    NotReached,
    /// The session was lost. Whatever was under way may have happened or not.
    Lost,
    /// The transaction was rolled back in favour of another one (40001, 40P01). The whole of it may be repeated.
    Conflict,
    /// A limit of time ended it: `statement_timeout`, `lock_timeout`, a cancel request.
    TimedOut,
    /// A constraint was not met (class 23).
    Constraint,
    /// The server will say the same next time: wrong password, unknown database, TLS refused.
    Refused,
    /// Anything else: a mistake in the statement or its data.
    Other,
}

impl Class {
    /// Classifies a driver error.
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(database) => match database.code() {
                Some(code) if code == "08P01" && is_fatal(error) && was_turned_away(database.message()) => {
                    Self::NotReached
                }
                // Of a session that goes on: a mistake in the protocol, or the trouble of a foreign data wrapper.
                Some(code) if code.starts_with("08") && !is_fatal(error) => Self::Other,
                Some(code) => Self::of_sqlstate(&code),
                None => Self::Other,
            },
            sqlx::Error::Io(io)
                if io
                    .get_ref()
                    .is_some_and(<dyn std::error::Error + Send + Sync + 'static>::is::<DeadlineError>) =>
            {
                Self::TimedOut
            }
            sqlx::Error::Io(io) => Self::of_io(io.kind(), io.raw_os_error().is_some()),
            sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Self::Refused,
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Self::NotReached,
            sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => Self::Lost,
            _ => Self::Other,
        }
    }

    /// Classifies a five-character SQLSTATE.
    #[must_use]
    pub fn of_sqlstate(code: &str) -> Self {
        match code {
            "53300" | "57P03" => Self::NotReached,
            "57P01" | "57P02" | "57P05" | "25P03" => Self::Lost,
            "40001" | "40P01" => Self::Conflict,
            "57014" | "55P03" => Self::TimedOut,
            "28P01" | "28000" | "3D000" => Self::Refused,
            _ if code.starts_with("08") => Self::Lost,
            _ if code.starts_with("23") => Self::Constraint,
            _ => Self::Other,
        }
    }

    fn of_io(kind: ErrorKind, from_os: bool) -> Self {
        match kind {
            // A socket file that is not there yet is a server that is not there yet.
            ErrorKind::ConnectionRefused
            | ErrorKind::NotFound
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => Self::NotReached,
            // What rustls says of certificates and alerts comes as invalid data.
            ErrorKind::PermissionDenied | ErrorKind::InvalidData => Self::Refused,
            // The resolver's errors carry no number: a name that is not known yet, in a cluster that is starting.
            _ if !from_os && kind != ErrorKind::UnexpectedEof => Self::NotReached,
            _ => Self::Lost,
        }
    }

    /// Whether waiting may mend it.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::NotReached | Self::Lost | Self::Conflict)
    }
}

/// Whether a pooler says that it had no session for a statement, which it therefore did not send. `PgBouncer` has one code for
/// all that it says itself, and these texts, in no language but English.
fn was_turned_away(said: &str) -> bool {
    [
        "query_wait_timeout",
        "server login has been failing",
        "pgbouncer cannot connect to server",
        "no more connections allowed",
    ]
    .iter()
    .any(|reason| said.starts_with(reason))
}

/// Whether the server ended the session with this error. Severity says so and not the code: 08P01 for a wrong number of
/// parameters is an error like any other, and a conflict on a standby may be the end.
pub(crate) fn is_fatal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether a statement failed before it was run because what was prepared for it is no longer valid: a table has changed
/// its columns (0A000, as raised by `RevalidateCachedQuery`), or the server has forgotten the statement (26000, as raised by
/// `FetchPreparedStatement`). The routine is asked for, since 0A000 says many things, a function may raise either when half
/// of its work is done, and the text depends on the server's language.
pub(crate) fn is_stale_plan(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let routine = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    match error.code().as_deref() {
        Some("0A000") => routine == Some("RevalidateCachedQuery"),
        Some("26000") => routine == Some("FetchPreparedStatement"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_fall_into_their_classes() {
        for (code, class) in [
            ("57P03", Class::NotReached),
            ("53300", Class::NotReached),
            ("57P01", Class::Lost),
            ("08006", Class::Lost),
            ("40001", Class::Conflict),
            ("40P01", Class::Conflict),
            ("57014", Class::TimedOut),
            ("23505", Class::Constraint),
            ("28P01", Class::Refused),
            ("3D000", Class::Refused),
            ("42601", Class::Other),
        ] {
            assert_eq!(Class::of_sqlstate(code), class, "{code}");
        }
    }

    #[test]
    fn a_missing_socket_is_a_server_that_is_not_there_yet_and_a_forbidden_one_is_not() {
        let missing = sqlx::Error::Io(std::io::Error::from(ErrorKind::NotFound));
        let forbidden = sqlx::Error::Io(std::io::Error::from_raw_os_error(13));

        assert_eq!(Class::of(&missing), Class::NotReached);
        assert_eq!(Class::of(&forbidden), Class::Refused);
    }

    #[test]
    fn a_reset_link_is_lost_and_a_name_not_known_is_not_reached() {
        let reset = sqlx::Error::Io(std::io::Error::from_raw_os_error(104));
        let unknown = sqlx::Error::Io(std::io::Error::other("failed to lookup address information"));
        let cut = sqlx::Error::Io(std::io::Error::from(ErrorKind::UnexpectedEof));

        assert_eq!(Class::of(&reset), Class::Lost);
        assert_eq!(Class::of(&unknown), Class::NotReached);
        assert_eq!(Class::of(&cut), Class::Lost);
    }
}
