//! The errors of the crate.

use db_core::ConnectFailure;

use crate::state::Trouble;

/// Why a bus could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option is out of its range.
    #[error(transparent)]
    Options(#[from] BusOptionsError),
    /// The first session could not be opened, or the first `LISTEN` failed.
    #[error("the bus could not listen on {to}: {failure}")]
    Listen {
        /// Role, host, port and database.
        to: String,
        /// Why.
        failure: ConnectFailure,
    },
    /// The server is a standby, which allows neither LISTEN nor NOTIFY.
    #[error("the bus could not listen on {to}: {}", Trouble::Standby)]
    Standby {
        /// Role, host, port and database.
        to: String,
    },
    /// The address says that it leads through a pooler in transaction mode.
    #[error(
        "the bus cannot listen on {to}: the address leads through a pooler, through which LISTEN delivers nothing. Set \
         DATABASE_URL_DIRECT to the address of the server itself"
    )]
    Pooled {
        /// Role, host, port and database.
        to: String,
    },
    /// LISTEN succeeded, and the bus's own notification did not arrive.
    #[error(
        "the bus could not listen on {to}: LISTEN succeeded and delivers nothing. The address seems to lead through a pooler in \
         transaction mode, such as PgBouncer: set DATABASE_URL_DIRECT to the address of the server itself"
    )]
    NothingDelivered {
        /// Role, host, port and database.
        to: String,
    },
}

impl OpenError {
    /// Whether a later attempt would fail as well. A standby may be promoted, so that error is not final.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Options(_) | Self::Pooled { .. } | Self::NothingDelivered { .. } => true,
            Self::Listen { failure, .. } => failure.is_final(),
            Self::Standby { .. } => false,
        }
    }
}

/// Which option of a bus is out of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusOptionsError {
    /// The namespace, which becomes part of the name of a channel.
    #[error("the namespace of the bus must have 1 to 53 bytes and no NUL character")]
    Namespace,
    /// The size of the queue.
    #[error("the queue of the bus has {0} notifications: use 1000 to 1000000, or 0 for the default of 10000")]
    Queue(usize),
    /// A duration, by its name.
    #[error("the {0} of the bus is out of range: use more than 0 s and at most 1 day")]
    Time(&'static str),
}

/// Why a notification was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotifyError {
    /// The payload does not fit into one NOTIFY.
    #[error("the payload has {bytes} bytes: at most {limit} fit beside this topic")]
    TooLong {
        /// The length of the payload, in bytes.
        bytes: usize,
        /// The longest payload that fits beside the topic, in bytes.
        limit: usize,
    },
    /// The payload contains a NUL character, which PostgreSQL's text cannot hold.
    #[error("the payload contains a NUL character: remove it")]
    Nul,
    /// The pool of the transaction has no bus.
    #[error("the pool of the transaction has no bus: attach one with Pool::attach")]
    NoBus,
    /// The bus was closed before the notification was sent.
    #[error("the bus was closed before the notification was sent")]
    Closed,
}

/// Why a transaction could not notify.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotifyInError {
    /// The notification can never be sent. The transaction can go on.
    #[error(transparent)]
    Refused(#[from] NotifyError),
    /// The statement failed, and with it the transaction.
    #[error("the transaction could not notify: {0}")]
    Statement(#[from] db_core::Error),
}

impl From<sqlx::Error> for NotifyInError {
    /// For `?` in a closure that runs statements beside its notifications.
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error.into())
    }
}

/// Why a text is not the name of a topic or of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("the name of a {kind} is empty: it needs 1 to {limit} bytes")]
    Empty {
        /// `topic` or `channel`.
        kind: &'static str,
        /// The longest name, in bytes.
        limit: usize,
    },
    /// The name is too long.
    #[error("the name of a {kind} has {bytes} bytes: at most {limit} are allowed")]
    TooLong {
        /// `topic` or `channel`.
        kind: &'static str,
        /// The length of the name, in bytes.
        bytes: usize,
        /// The longest name, in bytes.
        limit: usize,
    },
    /// The name contains a NUL character, which PostgreSQL's text cannot hold.
    #[error("the name of a {kind} contains a NUL character: remove it")]
    Nul {
        /// `topic` or `channel`.
        kind: &'static str,
    },
}
