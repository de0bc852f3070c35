//! Errors of event logs.

use std::sync::Arc;

use db_core::Class;

use crate::id::{LogId, WriterId};
use crate::limits::{MAX_BYTES, MAX_EVENTS};

/// Why an append or a read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such log.
    #[error("there is no event log {0}")]
    UnknownLog(LogId),
    /// The log was removed, or its events after the cursor were: see [`EventLogs::remove`](crate::EventLogs::remove),
    /// [`retain`](crate::EventLogs::retain) and [`trim`](crate::EventLogs::trim).
    #[error("{}", removed(*log, *first))]
    Removed {
        /// The log.
        log: LogId,
        /// The first event after the cursor that is still there: read on after event `first - 1`. None if the log was removed.
        first: Option<i64>,
    },
    /// Events that the reader has seen do not exist any more, or other events have their ids: a standby that had not received
    /// them was promoted, or a backup was restored. Or the reader's cursor is beyond the end of the log.
    #[error(
        "event log {log} was rewound: of the events that were read, those up to {last} are known to be unchanged"
    )]
    Rewound {
        /// The log.
        log: LogId,
        /// The last event that is known to be unchanged; 0 for none. Read on after it; some of the events after it may be ones
        /// that the reader has seen.
        last: i64,
    },
    /// The log is finished. Nothing was stored.
    #[error("event log {log} is finished with event {last}")]
    Finished {
        /// The log.
        log: LogId,
        /// Its last event.
        last: i64,
    },
    /// The log does not end where its [`Writer`](crate::Writer) expected: another writer has appended. Nothing was stored.
    #[error("event log {log} was expected to end with event {expected}, but ends with {last}")]
    Conflict {
        /// The log.
        log: LogId,
        /// The event that was expected to be the last.
        expected: i64,
        /// The last event.
        last: i64,
    },
    /// The append holds no event, or more than one batch takes. Nothing was stored.
    #[error("one append takes 1 to {MAX_EVENTS} events and {} MiB, not {events} events and {bytes} bytes", MAX_BYTES >> 20)]
    Size {
        /// Events in the append.
        events: usize,
        /// Bytes of their text.
        bytes: usize,
    },
    /// An event's kind is empty, too long, or has control characters. Nothing was stored.
    #[error("an event's kind must have 1 to 64 bytes and no control characters")]
    BadKind,
    /// An event's kind is one of [`NewEvent::RESERVED_KINDS`](crate::NewEvent::RESERVED_KINDS). Nothing was stored.
    #[error(
        "an event cannot be of kind `{0}`, which has a meaning of its own in a stream of server-sent events"
    )]
    ReservedKind(&'static str),
    /// Other events are stored under the writer's sequence number. Nothing was stored now.
    #[error("sequence number {sequence} of writer {writer} stands for other events of event log {log}, stored from event {first} on", writer = writer.0)]
    SequenceReused {
        /// The log.
        log: LogId,
        /// The writer.
        writer: WriterId,
        /// The sequence number of both batches.
        sequence: i64,
        /// The first event of the batch that is stored.
        first: i64,
    },
    /// An event's data contains a NUL, which PostgreSQL's text cannot hold. Nothing was stored.
    #[error("an event's data must not contain a NUL character (JSON writes it as \\u0000)")]
    Nul,
    /// The [`Appender`](crate::Appender) takes no more events. Events that were not acknowledged may be stored or not.
    #[error("the appender to event log {log} is closed: {}", cause.as_ref().map_or("its task has ended".to_owned(), ToString::to_string))]
    AppenderClosed {
        /// The log.
        log: LogId,
        /// The error that has closed it. None if its runtime has ended.
        cause: Option<Arc<Error>>,
    },
    /// The database did not answer within the limit. An append may be stored or not.
    #[error("{what}: no answer from the database within {seconds} s")]
    TimedOut {
        /// The operation.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The database failed.
    #[error("{what}: {cause}")]
    Database {
        /// The operation.
        what: &'static str,
        /// The cause. After [`Class::Lost`] and [`Class::TimedOut`], an append may be stored or not.
        cause: db_core::Error,
    },
}

fn removed(log: LogId, first: Option<i64>) -> String {
    match first {
        Some(first) => format!("events of event log {log} were removed: the next that is left is {first}"),
        None => format!("event log {log} was removed"),
    }
}

/// For closures of transactions that append: their other statements fail with this, too.
impl From<db_core::Error> for Error {
    fn from(cause: db_core::Error) -> Self {
        Self::Database { what: "a transaction", cause }
    }
}

impl From<sqlx::Error> for Error {
    /// For `?` in closures of transactions that run other statements, too.
    fn from(cause: sqlx::Error) -> Self {
        Self::database("run a statement beside an event log")(cause)
    }
}

impl Error {
    /// Whether the pool was closed: every later append and read fails, too.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Database { cause: db_core::Error::Acquire(refused), .. } if refused.is_closed())
    }

    /// Whether a later attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Database { cause, .. } => cause.is_transient(),
            _ => false,
        }
    }

    /// Whether the transaction lost a conflict with another one (SQLSTATE 40001).
    pub(crate) fn is_serialization_failure(&self) -> bool {
        self.has_sqlstate("40001")
    }

    /// Whether a foreign key refers to the row that was to be removed (SQLSTATE 23503).
    pub(crate) fn is_referred_to(&self) -> bool {
        self.has_sqlstate("23503")
    }

    fn has_sqlstate(&self, code: &str) -> bool {
        matches!(self, Self::Database { cause, .. } if cause.sqlstate().as_deref() == Some(code))
    }

    /// As [`is_transient`](Self::is_transient), for callers that must go on: also true if the server is in a bad state that can
    /// end. It may be read-only for a while (25006), out of disk space or memory (class 53), or fail internally (classes 58 and
    /// XX).
    pub(crate) fn may_recover(&self) -> bool {
        self.is_transient() || matches!(self, Self::Database { cause, .. } if is_of_the_server(cause))
    }

    /// As [`may_recover`](Self::may_recover), for callers that may repeat an attempt even if it was executed: also true if a
    /// limit of the pool was shorter than ours.
    pub(crate) fn may_be_repeated(&self) -> bool {
        let is_late = matches!(self, Self::Database { cause, .. } if cause.class() == Class::TimedOut);
        self.may_recover() || is_late
    }

    /// Whether the statement may have been executed all the same.
    pub(crate) fn is_ambiguous(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Database { cause, .. } => {
                matches!(cause.class(), Class::Lost)
                    || matches!(cause, db_core::Error::CommitUnknown(_))
                    || is_internal(cause)
            }
            _ => false,
        }
    }

    pub(crate) fn database(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::Database { what, cause: error.into() }
    }
}

fn is_of_the_server(cause: &db_core::Error) -> bool {
    let is_out_of_room = |code: &str| code.starts_with("53");
    matches!(cause.class(), Class::ReadOnly | Class::Resources)
        || cause.sqlstate().as_deref().is_some_and(is_out_of_room)
        || is_internal(cause)
}

/// Whether the server failed internally, at whatever point of the statement or of its commit.
fn is_internal(cause: &db_core::Error) -> bool {
    cause.sqlstate().is_some_and(|code| code.starts_with("58") || code.starts_with("XX"))
}
