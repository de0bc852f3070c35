//! Why nothing could be checked.

use std::path::PathBuf;

/// A check could not be made. What it finds is no error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// No server of its own could be started, or ended.
    #[error("a PostgreSQL for the check: {0}")]
    Server(#[from] db_embedded::Error),
    /// The migrations that the check begins after could not be applied, or the database that is compared could not be read.
    #[error(transparent)]
    Migrate(#[from] crate::Error),
    /// The check's own server has not answered as it should.
    #[error("{what}, on the server of the check: {cause}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// The error.
        cause: db_core::Error,
    },
    /// The statements that the server was to run first have failed.
    #[error("the statements that prepare the server of the check failed: {0}")]
    Setup(db_core::Error),
    /// The text of those statements cannot be split.
    #[error("the statements that prepare the server of the check, {0}")]
    SetupText(db_core::sql::SplitError),
    /// The dump could not be restored.
    #[error("{} was not restored: {reason}", file.display())]
    Dump {
        /// The file.
        file: PathBuf,
        /// What the program said.
        reason: String,
    },
    /// Extensions that the files make are not on this machine.
    #[error(
        "the PostgreSQL of the check has no extension {}: install it, or skip what makes it (`Check::without_extension`, \
         `--skip-extension`)",
        names.join(", ")
    )]
    NoExtension {
        /// Their names.
        names: Vec<String>,
    },
}

impl CheckError {
    pub(super) fn database(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::Database { what, cause: error.into() }
    }
}
