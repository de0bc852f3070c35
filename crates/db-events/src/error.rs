//! What can go wrong with event logs.

use std::sync::Arc;

use db_core::Class;

use crate::{LogId, WriterId};

/// Why an append or a read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such log.
    #[error("there is no event log {0}")]
    UnknownLog(LogId),
    /// There was such a log, perhaps, and there is none any more; or what comes next in it was removed.
    #[error("event log {0} was removed")]
    Removed(LogId),
    /// Events that were seen are not there any more, or others are in their place: a standby that had not received them was
    /// promoted, or a backup was restored. Or there never were as many.
    #[error(
        "event log {log} was rewound: of what was seen of it, only what comes up to event {last} is known to be there"
    )]
    Rewound {
        /// The log.
        log: LogId,
        /// The last event that is known to be the one that was seen; 0 if none is. Read on after it: what comes then may have
        /// been seen before.
        last: i64,
    },
    /// The log is finished; nothing was stored.
    #[error("event log {log} is finished with event {last}")]
    Finished {
        /// The log.
        log: LogId,
        /// Its last event.
        last: i64,
    },
    /// Somebody else appended to a log that was taken to end elsewhere; nothing was stored.
    #[error("event log {log} was taken to end with event {expected}, but ends with {last}")]
    Conflict {
        /// The log.
        log: LogId,
        /// The event that was taken to be the last.
        expected: i64,
        /// The last event.
        last: i64,
    },
    /// More was to be appended at once than one batch takes; nothing was stored.
    #[error("one append takes 1 to {} events and {} MiB, not {events} events and {bytes} bytes", crate::append::MAX_EVENTS, crate::append::MAX_BYTES >> 20)]
    Size {
        /// How many events it was.
        events: usize,
        /// How much text they hold.
        bytes: usize,
    },
    /// An event's type is not a short plain text; nothing was stored.
    #[error("an event's type has 1 to 64 bytes and no control characters")]
    BadKind,
    /// An event's type is one of [`NewEvent::RESERVED_KINDS`](crate::NewEvent::RESERVED_KINDS); nothing was stored.
    #[error(
        "an event cannot have the type `{0}`, which has a meaning of its own in a stream of server-sent events"
    )]
    ReservedKind(&'static str),
    /// The writer has stored another batch under this number; nothing was stored now.
    #[error("writer {writer} has stored another batch of event log {log} as its number {sequence}, from event {first} on", writer = writer.0)]
    SequenceReused {
        /// The log.
        log: LogId,
        /// Who has stored it.
        writer: WriterId,
        /// Its number for both batches.
        sequence: i64,
        /// The first event of the batch that is stored.
        first: i64,
    },
    /// An event's data contains a NUL, which PostgreSQL's text cannot hold; nothing was stored.
    #[error("an event's data must not contain a NUL character (JSON writes it as \\u0000)")]
    Nul,
    /// An [`Appender`](crate::Appender) has ended. What was not acknowledged may be stored or not.
    #[error("nothing more is appended to event log {log}: {}", cause.as_ref().map_or("the appender has ended".to_owned(), ToString::to_string))]
    AppenderClosed {
        /// The log.
        log: LogId,
        /// Why, if it is not only that nobody used it any more.
        cause: Option<Arc<Error>>,
    },
    /// The database did not answer within the limit. An append may be stored or not.
    #[error("{what}: no answer from the database within {seconds} s")]
    TimedOut {
        /// What was being done.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The database failed.
    #[error("{what}: {cause}")]
    Database {
        /// What was being done.
        what: &'static str,
        /// What it met. [`Class::Lost`] and [`Class::TimedOut`] leave open whether an append is stored.
        cause: db_core::Error,
    },
}

impl From<db_core::Error> for Error {
    fn from(cause: db_core::Error) -> Self {
        Self::of(cause)
    }
}

impl From<sqlx::Error> for Error {
    /// For `?` in a closure that runs statements beside what it does with logs.
    fn from(cause: sqlx::Error) -> Self {
        Self::database("run a statement beside an event log")(cause)
    }
}

impl Error {
    /// Whether the pool was closed: nothing is read or appended any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Database { cause: db_core::Error::Acquire(refused), .. } if refused.is_closed())
    }

    /// Whether waiting may mend it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Database { cause, .. } => cause.is_transient(),
            _ => false,
        }
    }

    /// The same for one who has to go on: also when it is the server that is in a bad way, and not what it was asked to do. It may
    /// take no writes for a while (25006), have no room left (class 53), or fail by itself (classes 58 and XX).
    pub(crate) fn may_be_mended(&self) -> bool {
        self.is_transient() || matches!(self, Self::Database { cause, .. } if is_of_the_server(cause))
    }

    /// The same for one who asks again whatever became of it: also when a limit of the pool's was shorter than ours.
    pub(crate) fn may_pass(&self) -> bool {
        let is_late = matches!(self, Self::Database { cause, .. } if cause.class() == Class::TimedOut);
        self.may_be_mended() || is_late
    }

    /// Whether the statement may have been done all the same.
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

    /// Whether a foreign key of somebody else's refers to what was to be removed (SQLSTATE 23503).
    pub(crate) fn is_referred_to(&self) -> bool {
        matches!(self, Self::Database { cause, .. } if cause.sqlstate().as_deref() == Some("23503"))
    }

    /// What an append met before or around its statement.
    pub(crate) fn of(cause: db_core::Error) -> Self {
        Self::Database { what: crate::append::WHAT, cause }
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

/// Whether something failed in the server itself, at whatever point of the statement or of its commit.
fn is_internal(cause: &db_core::Error) -> bool {
    cause.sqlstate().is_some_and(|code| code.starts_with("58") || code.starts_with("XX"))
}
