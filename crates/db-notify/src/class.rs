//! The meaning of a session's error for the bus. `db_core::Class` has the table of SQLSTATEs and driver errors; this file adds
//! the questions that only a bus asks.

use db_core::Class;
use sqlx::error::DatabaseError;

/// Whether the session is lost. Another answer of the server refuses the statement, and the session goes on.
pub(crate) fn is_session_lost(error: &sqlx::Error) -> bool {
    matches!(Class::of(error), Class::NotReached | Class::Lost | Class::Refused)
}

/// Whether the server is a standby, or takes no writes (25006).
pub(crate) fn is_read_only(error: &sqlx::Error) -> bool {
    Class::of(error) == Class::ReadOnly
}

/// Whether the server's queue of notifications is full (54000, `program_limit_exceeded`).
pub(crate) fn is_queue_full(error: &sqlx::Error) -> bool {
    has_code(error, "54000")
}

/// Whether the database cannot hold the text, so that another attempt fails as well: the whole of class 22, "data exception". Such
/// a text has a character that the encoding of the database lacks, or is too long in that encoding.
pub(crate) fn is_text_refused(error: &sqlx::Error) -> bool {
    has_code(error, "22")
}

fn has_code(error: &sqlx::Error, prefix: &str) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code.starts_with(prefix))
}
