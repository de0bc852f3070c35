//! A PgBouncer between a test and its server.

mod account;
mod ini;
mod process;
mod program;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::address;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::server::TestServer;
use crate::until::PATIENCE;
use account::Account;
use ini::Ini;
use process::Process;
use program::Program;

/// A `PgBouncer` in front of a test's database, in transaction mode. It ends with this value or with the test process, however
/// that ends, and its folder is removed.
///
/// Code connects through it by [`url`](PgBouncer::url) or [`options`](PgBouncer::options). Everything that is not
/// [set](PgBouncerBuilder::setting) has `PgBouncer`'s default: unknown startup parameters are refused, and prepared statements
/// are tracked from 1.24 on, unless `max_prepared_statements` is set.
///
/// It listens only on a Unix socket, in a folder that only its own account can enter. Clients that reach the socket need no
/// name or password, and are logged in to the server as the test's role. Its administration console is the database
/// `pgbouncer`, see [`url_of`](PgBouncer::url_of), which understands only the simple protocol.
///
/// The program is the one in the environment variable `DB_TESTKIT_PGBOUNCER`, else `pgbouncer` on `PATH` or in `/usr/sbin`.
/// `PgBouncer` refuses to run as root. For root it runs as the account of the [embedded](db_embedded) server or, with
/// `DATABASE_URL`, as `postgres`, else as `nobody`; a server with `peer` authentication must let in that account. The password
/// comes from the address or from `PGPASSWORD`; the password file is not read.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> { db_testkit::run(async |db| {
/// use db_testkit::PgBouncer;
/// use sqlx::{ConnectOptions, Connection};
///
/// let bouncer = PgBouncer::builder().default_pool_size(1).start(&db).await?;
/// let mut connection = bouncer.options().connect().await?;
///
/// bouncer.restart().await?;
///
/// assert!(connection.ping().await.is_err());
/// bouncer.options().connect().await?.ping().await?;
/// # Ok(())
/// # }) }
/// ```
pub struct PgBouncer {
    url: Url,
    options: PgConnectOptions,
    version: (u32, u32, u32),
    process: Mutex<Process>,
}

/// Options of a [`PgBouncer`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing happens before `start`"]
pub struct PgBouncerBuilder {
    program: Option<PathBuf>,
    include: Option<PathBuf>,
    settings: Vec<(String, String)>,
}

impl PgBouncer {
    /// Sets options before the start.
    pub fn builder() -> PgBouncerBuilder {
        PgBouncerBuilder::default()
    }

    /// The address of the database through the pooler: `postgres://role@localhost:port/database?host=folder&pgbouncer=true`.
    ///
    /// It has no password. The parameter `pgbouncer` tells `db_core` that the address is a pooler's; sqlx logs a warning about
    /// it and ignores it.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The address of another database of the server through the pooler, or of its administration console, `pgbouncer`.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        address::with_database(&self.url, database).into()
    }

    /// The same as [`url`](PgBouncer::url), for sqlx, without the startup parameter `extra_float_digits`, which sqlx sends by
    /// default and `PgBouncer` refuses by default.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The version, such as `(1, 24, 1)`. From `(1, 21, 0)` on, it can track prepared statements.
    #[must_use]
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// The id of its process; `None` once it was killed or has ended by itself.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().pid()
    }

    /// Its whole log, including the starts before a [restart](PgBouncer::restart).
    ///
    /// # Errors
    ///
    /// [`Error::PgBouncer`] if the file cannot be read.
    pub fn log(&self) -> Result<String, Error> {
        self.process().log()
    }

    /// Kills it with `SIGKILL`, and returns when it is gone, within some milliseconds. Clients get an end of file, the server
    /// sees its sessions closed, and new connections fail until a [`restart`](PgBouncer::restart).
    ///
    /// # Errors
    ///
    /// [`Error::PgBouncer`] if the operating system refuses.
    pub fn kill(&self) -> Result<(), Error> {
        self.process().kill()
    }

    /// [Kills](PgBouncer::kill) it if it runs, starts it at the same address, and waits until clients can connect.
    ///
    /// Not cancel safe: afterwards it may run, or not listen yet.
    ///
    /// # Errors
    ///
    /// [`Error::PgBouncer`], [`Error::PgBouncerFailed`], and [`Error::TimedOut`] after 20 seconds.
    pub async fn restart(&self) -> Result<(), Error> {
        self.process().start()?;
        let deadline = Deadline::after(PATIENCE);
        while !self.process().listens()? {
            deadline.pause("PgBouncer to listen").await?;
        }
        Ok(())
    }

    /// A panic while the lock was held leaves a consistent state: each order is complete by itself.
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PgBouncerBuilder {
    /// The most sessions of the server that it opens, for each database and role.
    pub fn default_pool_size(self, sessions: u32) -> PgBouncerBuilder {
        self.setting("default_pool_size", sessions.to_string())
    }

    /// How many prepared statements of a client it tracks in each session of the server; 0 turns that off. PgBouncer before
    /// 1.21 does not know this setting, and does not start.
    pub fn max_prepared_statements(self, statements: u32) -> PgBouncerBuilder {
        self.setting("max_prepared_statements", statements.to_string())
    }

    /// Sets any parameter of the section `[pgbouncer]`. The last value wins, also over the kit's own.
    ///
    /// # Panics
    ///
    /// If the name or the value has a line break.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> PgBouncerBuilder {
        let (name, value) = (name.into(), value.into());
        assert!(!name.contains('\n') && !value.contains('\n'), "the setting {name:?} has a line break");
        self.settings.push((name, value));
        self
    }

    /// A configuration file, such as production's. The kit's own settings override it: where to listen and to log, which
    /// clients may connect, and the server.
    pub fn include(mut self, file: impl Into<PathBuf>) -> PgBouncerBuilder {
        self.include = Some(file.into());
        self
    }

    /// The program, such as an old version. No other place is searched then.
    pub fn program(mut self, program: impl Into<PathBuf>) -> PgBouncerBuilder {
        self.program = Some(program.into());
        self
    }

    /// Starts it in front of this server. [`url`](PgBouncer::url) is that of the maintenance database; see
    /// [`url_of`](PgBouncer::url_of).
    ///
    /// # Errors
    ///
    /// As [`start`](PgBouncerBuilder::start).
    pub async fn to_server(self, server: &TestServer) -> Result<PgBouncer, Error> {
        let options = server.maintenance()?;
        let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        self.start_before(server, &server.url_of(&database), &options).await
    }

    pub(crate) async fn start_before(
        self,
        server: &TestServer,
        url: &str,
        options: &PgConnectOptions,
    ) -> Result<PgBouncer, Error> {
        let account = Account::to_run_before(server)?;
        let program = Program::find(self.program.as_deref(), &account)?;
        let ini = Ini::new(url, options, self.include.as_deref(), &self.settings)?;
        let process = Process::prepare(account, &program, &ini)?;
        let url = address::through_socket(url, options.get_username(), process.folder(), ini::PORT)?;
        let options = PgConnectOptions::from_str(url.as_str())
            .map_err(|error| Error::Address { why: error.to_string() })?
            .extra_float_digits(None);
        // After sqlx has parsed the address, since it warns about parameters that it does not know.
        let url = address::with(&url, "pgbouncer", "true");
        let bouncer = PgBouncer { url, options, version: program.version, process: Mutex::new(process) };
        bouncer.restart().await?;
        Ok(bouncer)
    }
}

impl fmt::Debug for PgBouncer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgBouncer")
            .field("version", &self.version)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}
