//! Errors of the test kit.

use std::error::Error as _;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Why a database or server for a test could not be made, changed or dropped.
///
/// No message shows an address: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kit's own server did not start.
    #[error("no PostgreSQL server to test on")]
    Server(#[source] db_embedded::Error),
    /// An address, such as `DATABASE_URL`, is not that of a PostgreSQL database.
    #[error("the database's address cannot be used: {why}")]
    Address {
        /// What is wrong with the address.
        why: String,
    },
    /// The server cannot be reached, or refuses the login.
    #[error("cannot connect to the database {database} on {server}")]
    Connect {
        /// The database.
        database: String,
        /// The server, by name.
        server: &'static str,
        /// The driver's error.
        source: sqlx::Error,
    },
    /// The folder holds no migrations, or invalid ones.
    #[error("cannot read the migrations in {folder}", folder = folder.display())]
    Migrations {
        /// The folder.
        folder: PathBuf,
        /// sqlx's error.
        source: sqlx::migrate::MigrateError,
    },
    /// A repeatable file could not be applied after the migrations.
    #[error("cannot apply {file}", file = file.display())]
    Repeatable {
        /// The file.
        file: PathBuf,
        /// The driver's error.
        source: sqlx::Error,
    },
    /// A migration failed on an empty database.
    #[error("cannot migrate the template {template}")]
    Migrate {
        /// The database that was to become the template; it has been dropped.
        template: String,
        /// sqlx's error, with the migration.
        source: sqlx::migrate::MigrateError,
    },
    /// The file of a fixture cannot be read, or is not UTF-8.
    #[error("cannot read the fixture {file}", file = file.display())]
    FixtureFile {
        /// The file.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The server refused a statement of a fixture. Nothing of the file is kept.
    #[error("cannot run the fixture {file}{place}", file = file.display(), place = place(*line))]
    Fixture {
        /// The file.
        file: PathBuf,
        /// The line that the server points at, if it does.
        line: Option<usize>,
        /// The driver's error.
        source: sqlx::Error,
    },
    /// A fixture begins a transaction and does not end it. What follows its last `begin` is not kept.
    #[error("the fixture {file} leaves a transaction open: end it with `commit`", file = file.display())]
    FixtureOpen {
        /// The file.
        file: PathBuf,
    },
    /// A fixture did not end in time.
    #[error("the fixture {file} did not end within {:.1} s", waited.as_secs_f64(), file = file.display())]
    FixtureSlow {
        /// The file.
        file: PathBuf,
        /// How long the wait was.
        waited: Duration,
    },
    /// The server refused a statement of the kit.
    #[error("cannot {action} {database}")]
    Statement {
        /// What was tried, as in "cannot *drop the database* x".
        action: &'static str,
        /// The database concerned.
        database: String,
        /// The driver's error.
        source: sqlx::Error,
    },
    /// A proxy could not start.
    #[error("the proxy cannot {action}")]
    Proxy {
        /// What was tried, as in "cannot *listen*".
        action: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// There is no usable `PgBouncer` on this machine, or no account to run it as.
    #[error(
        "no usable PgBouncer found: {tried}\n\
         Install it: `apt install pgbouncer`, `dnf install pgbouncer`, `apk add pgbouncer`, `brew install pgbouncer`;\n\
         or set DB_TESTKIT_PGBOUNCER to the program."
    )]
    NoPgBouncer {
        /// Each place searched, and what was wrong with it.
        tried: String,
    },
    /// `PgBouncer` ended before it accepted a connection.
    #[error("PgBouncer did not start, or has ended:\n{log}")]
    PgBouncerFailed {
        /// The last lines of its log.
        log: String,
    },
    /// The operating system refused something that `PgBouncer` needs.
    #[error("cannot {action} for PgBouncer")]
    PgBouncer {
        /// What was tried, as in "cannot *kill the process*".
        action: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Redis ended before it answered, or is not on this machine.
    #[error(
        "Redis did not start, or has ended:\n{log}\n\
         Install it: `apt install redis-server`, `dnf install redis`, `brew install redis`; or set DB_TESTKIT_REDIS to the program."
    )]
    RedisFailed {
        /// The last lines of its log.
        log: String,
    },
    /// The operating system refused something that Redis needs.
    #[error("cannot {action} for Redis")]
    Redis {
        /// What was tried, as in "cannot *kill the process*".
        action: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The rules of a script cannot be followed.
    #[cfg(feature = "script")]
    #[error("the script cannot be followed: {why}")]
    Rules {
        /// Which rules, and why.
        why: String,
    },
    /// A script does not come up.
    #[cfg(feature = "script")]
    #[error("no script for the test: cannot {action}")]
    Script {
        /// As in "cannot *listen*".
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A recording cannot be replayed.
    #[cfg(feature = "script")]
    #[error("cannot replay {file}: {why}", file = file.display())]
    Recording {
        /// The file.
        file: PathBuf,
        /// What is wrong with the file.
        why: String,
    },
    /// The operating system refused something that a cluster needs.
    #[error("no cluster: cannot {action}")]
    Cluster {
        /// As in "cannot *make its folder*".
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A program of a cluster failed: a server that ended, `initdb`, `pg_rewind`.
    #[error("{what}:\n{log}")]
    ClusterProgram {
        /// As in "*member 1 of the cluster has ended*".
        what: String,
        /// The last lines that the program wrote.
        log: String,
    },
    /// A member of a cluster does not have the role that the call needs.
    #[error("cannot {action} member {member} of the cluster: that member is {role}")]
    Role {
        /// As in "cannot *promote*".
        action: &'static str,
        /// The number of the member.
        member: usize,
        /// As in "is *the primary*".
        role: &'static str,
    },
    /// The server is shared, and other tests would be affected.
    #[error("a shared server may not be {done}: use a server of TestServer::throwaway")]
    NotPrivate {
        /// What was tried, as in "may not be *stopped*".
        done: &'static str,
    },
    /// A process of the server cannot be signalled.
    #[error("cannot signal the server's process {pid}")]
    Signal {
        /// The process id.
        pid: i32,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A deadline has passed.
    #[error("gave up after waiting {:.1} s for {what}", waited.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long the wait was.
        waited: Duration,
    },
}

impl Error {
    /// The SQLSTATE of the server's error.
    pub(crate) fn sqlstate(&self) -> Option<String> {
        match self {
            Error::Connect { source, .. } | Error::Statement { source, .. } => sqlstate(source),
            _ => None,
        }
    }

    /// The error with all its sources, for places that print it.
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

fn place(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

pub(crate) fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
