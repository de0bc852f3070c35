//! Errors of work in batches.

use db_core::{Class, ConnectError};

use super::Refusal;
use crate::error::is_of_a_lock;

/// Why batches did not run to their end. What was stored until then stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The address leads through a pooler, which would share the session that holds the lock with other clients.
    #[error(
        "batches on {to} need sessions of their own, and the address leads through a pooler: use the server's own address"
    )]
    Pooled {
        /// Role, host, port and database.
        to: String,
    },
    /// Another run works on the same columns.
    #[error("another process works on {relation} already{}", holder.map(|pid| format!(" (server process {pid})")).unwrap_or_default())]
    Busy {
        /// The table.
        relation: String,
        /// The server process that holds the lock, if it is known.
        holder: Option<i32>,
    },
    /// The table is not as the run needs it: all that is wrong with it.
    #[error("{relation}: {}", .what.join("; "))]
    Misfit {
        /// The table.
        relation: String,
        /// What is wrong, a sentence each.
        what: Vec<String>,
    },
    /// The role may not switch triggers off.
    #[error(
        "{relation}: this role may not switch triggers off (session_replication_role): run as a superuser, or let them fire"
    )]
    Triggers {
        /// The table.
        relation: String,
    },
    /// The role may not see how far the standbys are.
    #[error(
        "this role may not read how far standbys are: grant it pg_monitor, or set no limit of the replication lag"
    )]
    Lag,
    /// Something else held a lock on the whole table, such as a migration.
    #[error("{relation} was locked for more than {patience:.0?}", patience = .patience)]
    Locked {
        /// The table.
        relation: String,
        /// How long the run tried.
        patience: std::time::Duration,
    },
    /// A row cannot be changed, and the run was to stop then.
    #[error("{relation}: {refusal}")]
    Refused {
        /// The table.
        relation: String,
        /// The row, and why.
        refusal: Refusal,
    },
    /// A statement failed.
    #[error("{what} {relation}: {cause}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The table.
        relation: String,
        /// The error.
        cause: Box<db_core::Error>,
    },
}

impl BatchError {
    pub(crate) fn from_sqlx(what: &'static str, relation: &str, error: sqlx::Error) -> Self {
        Self::Failed { what, relation: relation.to_owned(), cause: Box::new(error.into()) }
    }

    /// Whether the session was lost, so that a new one may go on.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Failed { cause, .. } if matches!(cause.class(), Class::Lost | Class::NotReached))
    }

    /// Whether somebody else held a lock for longer than a statement waits.
    pub(super) fn is_locked(&self) -> bool {
        self.code().is_some_and(|code| is_of_a_lock(&code))
    }

    /// Whether it was found before any row was looked at.
    pub(crate) fn has_changed_nothing(&self) -> bool {
        matches!(self, Self::Misfit { .. } | Self::Triggers { .. } | Self::Lag)
    }

    /// The server's code for the error.
    pub(super) fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Self::Failed { cause, .. } => cause.sqlstate(),
            _ => None,
        }
    }
}
