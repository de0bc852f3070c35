//! Why a test has no database.

use std::error::Error as _;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Why a test has no database, could not get rid of it, or cannot do to it what it wants.
///
/// No message shows an address: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Our own server did not start.
    #[error("no PostgreSQL server to test on")]
    Server(#[source] db_embedded::Error),
    /// That of `DATABASE_URL`, or another one, is not the address of a PostgreSQL database.
    #[error("the database's address cannot be used: {why}")]
    Address {
        /// What is wrong with it.
        why: String,
    },
    /// The server cannot be reached, or refuses us.
    #[error("cannot connect to the database {database} on {server}")]
    Connect {
        /// The database.
        database: String,
        /// Which server that is.
        server: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// The folder holds no migrations, or wrong ones.
    #[error("cannot read the migrations in {folder}", folder = folder.display())]
    Migrations {
        /// The folder that was named.
        folder: PathBuf,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A migration failed on the empty database.
    #[error("cannot migrate the template {template}")]
    Migrate {
        /// The database that was to become the template; it is dropped again.
        template: String,
        /// Which migration, and why.
        source: sqlx::migrate::MigrateError,
    },
    /// The server refused a statement of ours.
    #[error("cannot {action} {database}")]
    Statement {
        /// As in "cannot *drop the database* x".
        action: &'static str,
        /// The database that it was about.
        database: String,
        /// Why.
        source: sqlx::Error,
    },
    /// A proxy does not come up.
    #[error("no proxy in front of the server: cannot {action}")]
    Proxy {
        /// As in "cannot *listen*".
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// There is no usable `PgBouncer` on this machine, or nobody to run it as.
    #[error(
        "no PgBouncer to put before the server: {tried}\n\
         Install it: `apt install pgbouncer`, `dnf install pgbouncer`, `apk add pgbouncer`, `brew install pgbouncer`;\n\
         or set DB_TESTKIT_PGBOUNCER to the program."
    )]
    NoPgBouncer {
        /// Each place, and what was wrong with it.
        tried: String,
    },
    /// `PgBouncer` ended before it accepted a connection.
    #[error("PgBouncer did not start, or has ended:\n{log}")]
    PgBouncerFailed {
        /// The last lines of its log.
        log: String,
    },
    /// The operating system refused something that a `PgBouncer` needs.
    #[error("no PgBouncer before the server: cannot {action}")]
    PgBouncer {
        /// As in "cannot *start it*".
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The server is not this test's alone, so others would suffer.
    #[error("only a server of the test's own may be {done}: take one from TestServer::throwaway")]
    NotPrivate {
        /// As in "may be *stopped*".
        done: &'static str,
    },
    /// A process of the server cannot be signalled.
    #[error("cannot signal the server's process {pid}")]
    Signal {
        /// Which one.
        pid: i32,
        /// Why.
        source: std::io::Error,
    },
    /// The time ran out.
    #[error("waited {:.1} s for {what}", waited.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
}

impl Error {
    /// The SQLSTATE of the server's refusal.
    pub(crate) fn sqlstate(&self) -> Option<String> {
        match self {
            Error::Connect { source, .. } | Error::Statement { source, .. } => sqlstate(source),
            _ => None,
        }
    }

    /// The whole chain, for where nobody is left who would follow it.
    pub(crate) fn with_sources(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            // Writing to a string does not fail.
            let _ = write!(text, "\n  because: {error}");
            source = error.source();
        }
        text
    }
}

pub(crate) fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
