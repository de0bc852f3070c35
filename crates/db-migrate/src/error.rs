//! Errors of migrating.

use std::time::Duration;

use db_core::Class;

/// Why migrations were not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder cannot be read as migrations.
    #[error("the migrations in {dir} cannot be read: {reason}")]
    Source {
        /// The folder.
        dir: String,
        /// sqlx's message.
        reason: String,
    },
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] db_core::ConnectError),
    /// The address leads through a pooler, which would share the session that holds the lock with other clients.
    #[error(
        "migrations of {to} need a session of their own, and the address leads through a pooler: use the server's own \
         address (DATABASE_URL_DIRECT)"
    )]
    Pooled {
        /// Role, host, port and database.
        to: String,
    },
    /// Another session held the migration lock for the whole deadline.
    #[error("the migration lock of database `{database}` was not free within {:.0} s{}", waited.as_secs_f64(), holder.map(|pid| format!("; the session of server process {pid} holds it")).unwrap_or_default())]
    Locked {
        /// The database.
        database: String,
        /// How long this process tried to take it.
        waited: Duration,
        /// The server process that holds the lock, if it is known.
        holder: Option<i32>,
    },
    /// A newer version of the program has migrated the database.
    #[error(
        "the database has migration {version}, which this program does not know: a newer version has applied it"
    )]
    Unknown {
        /// The version.
        version: i64,
    },
    /// A file was changed after it was applied.
    #[error("migration {version} was changed after it was applied to this database")]
    Changed {
        /// The version.
        version: i64,
    },
    /// A pending file has an older version than an applied one.
    #[error(
        "migration {version} is not applied, but the newer {newest} is: give it a version after {newest}"
    )]
    OutOfOrder {
        /// The version that is not applied.
        version: i64,
        /// The newest applied version.
        newest: i64,
    },
    /// A migration cannot be reverted.
    #[error("migration {version} has no down file, so the database cannot go down to version {target}")]
    NoDown {
        /// The version without a down file.
        version: i64,
        /// The version to go down to.
        target: i64,
    },
    /// There is no such version.
    #[error("there is no migration {version}")]
    NoSuchVersion {
        /// The version.
        version: i64,
    },
    /// A migration failed. It was rolled back, unless it runs outside of a transaction.
    #[error("migration {version} failed: {cause}")]
    Failed {
        /// The version.
        version: i64,
        /// The server's error.
        cause: db_core::Error,
    },
    /// The connection was lost while a migration ran outside of a transaction, and the database has no record of it: it may be
    /// done, in part or not at all. The same call does not run it again.
    #[error(
        "migration {version} runs outside of a transaction, and the connection was lost while it ran, so it may be done in part; \
         check what it has done before you run it again: {reason}"
    )]
    Interrupted {
        /// The version.
        version: i64,
        /// The error that ended the connection.
        reason: String,
    },
    /// Another statement failed.
    #[error("{what}: {cause}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// The error.
        cause: db_core::Error,
    },
    /// sqlx refused for another reason.
    #[error("the migrator refused: {0}")]
    Other(String),
}

impl Error {
    /// Whether the connection was lost or could not be opened, so that the next attempt may succeed from where this one ended.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => !error.failure().is_final(),
            Self::Failed { cause, .. } | Self::Database { cause, .. } => {
                matches!(cause.class(), Class::Lost | Class::NotReached)
            }
            _ => false,
        }
    }

    pub(crate) fn database(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::Database { what, cause: error.into() }
    }

    pub(crate) fn from_sqlx(error: sqlx::migrate::MigrateError) -> Self {
        use sqlx::migrate::MigrateError;
        match error {
            MigrateError::ExecuteMigration(error, version) => Self::Failed { version, cause: error.into() },
            MigrateError::Execute(error) => Self::Database { what: "migrate", cause: error.into() },
            MigrateError::VersionMissing(version) => Self::Unknown { version },
            MigrateError::VersionMismatch(version) => Self::Changed { version },
            MigrateError::VersionNotPresent(version) => Self::NoSuchVersion { version },
            other => Self::Other(other.to_string()),
        }
    }
}
