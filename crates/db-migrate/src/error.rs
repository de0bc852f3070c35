//! What can go wrong in migrating.

use std::time::Duration;

use db_core::Class;

/// Why migrations were not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder cannot be read as migrations.
    #[error("the migrations in {dir} cannot be read: {said}")]
    Source {
        /// The folder.
        dir: String,
        /// What sqlx said.
        said: String,
    },
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] db_core::ConnectError),
    /// The address leads through a pooler, which would give the session that has the lock to others.
    #[error(
        "migrations of {to} need a session of their own, and the address leads through a pooler: use the server's own \
         address (DATABASE_URL_DIRECT)"
    )]
    Pooled {
        /// Role, host, port and database.
        to: String,
    },
    /// Somebody else was migrating for the whole time.
    #[error("the migration lock of database `{database}` was not free within {:.0} s{}", waited.as_secs_f64(), holder.map(|pid| format!("; the session of server process {pid} has it")).unwrap_or_default())]
    Locked {
        /// The database.
        database: String,
        /// How long it was tried.
        waited: Duration,
        /// The server process that holds it, when it could be seen.
        holder: Option<i32>,
    },
    /// The database is ahead of the program.
    #[error(
        "the database has migration {version}, which this program does not know: it was made by a newer one"
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
    /// A new file is older than what was applied.
    #[error("migration {version} is not applied, but {newest}, a newer one, is: give it a later version")]
    OutOfOrder {
        /// The version that is not applied.
        version: i64,
        /// The newest version that is.
        newest: i64,
    },
    /// There is no way back.
    #[error("migration {version} has no down file, so version {target} cannot be gone back to")]
    NoDown {
        /// The version without a down file.
        version: i64,
        /// Where it was to go.
        target: i64,
    },
    /// There is no such version.
    #[error("there is no migration {version}")]
    NoSuchVersion {
        /// The version.
        version: i64,
    },
    /// A migration failed. It was rolled back, unless it is one that runs outside a transaction.
    #[error("migration {version} failed: {cause}")]
    Failed {
        /// The version.
        version: i64,
        /// What the server said.
        cause: db_core::Error,
    },
    /// The connection was lost while a migration ran outside of a transaction, and the database has no record of it: it may be
    /// done, in part or not at all. It is not run again by the same call.
    #[error(
        "migration {version} runs outside of a transaction, and the connection was lost in it, so it may be done in part; \
         look at what it has done before it is run again: {said}"
    )]
    Interrupted {
        /// The version.
        version: i64,
        /// What was met.
        said: String,
    },
    /// The database failed elsewhere.
    #[error("{what}: {cause}")]
    Database {
        /// What was being done.
        what: &'static str,
        /// What it met.
        cause: db_core::Error,
    },
    /// sqlx refused for another reason.
    #[error("the migrator refused: {0}")]
    Other(String),
}

impl Error {
    /// Whether the connection was lost, or not to be had, and nothing else is wrong: looking at the database again, and going on
    /// from there, may do.
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
