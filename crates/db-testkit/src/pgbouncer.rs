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
use crate::db::TestDb;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::server::TestServer;
use crate::until::PATIENCE;
use account::Account;
use ini::Ini;
use process::Process;
use program::Program;

/// A `PgBouncer` in front of a test's database, in transaction mode. It ends with this value, and with the test process,
/// however that ends; its folder goes, too.
///
/// Whatever shall pass through it connects by [`url`](PgBouncer::url) or [`options`](PgBouncer::options). What was not
/// [set](PgBouncerBuilder::setting) is as `PgBouncer` has it by default: startup parameters that it does not know are
/// refused, and prepared statements are followed from 1.24 on, unless `max_prepared_statements` is set.
///
/// It listens on a Unix socket in a folder that only its own account can enter. Whoever gets there is let in without being
/// asked for a name or a password, and logged in to the server as the test's role; nobody listens on TCP. Its administration is
/// the database `pgbouncer`, see [`url_of`](PgBouncer::url_of), which only understands the simple protocol.
///
/// The program is that of the environment variable `DB_TESTKIT_PGBOUNCER`, else `pgbouncer` on `PATH` or in `/usr/sbin`.
/// `PgBouncer` refuses to run as root: for root it runs as the account of the [embedded](db_embedded) server, and before the
/// server of `DATABASE_URL` as `postgres`, else as `nobody`. A server that asks the kernel who connects has to let in that
/// account. A password is that of the address or of `PGPASSWORD`; the file of passwords is not read.
///
/// ```
/// use db_testkit::{PgBouncer, TestDb};
/// use sqlx::{ConnectOptions, Connection};
///
/// #[db_testkit::test]
/// async fn a_lost_pooler_is_noticed(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
///     let bouncer = PgBouncer::builder().default_pool_size(1).start(&db).await?;
///     let mut connection = bouncer.options().connect().await?;
///
///     bouncer.restart().await?;
///
///     assert!(connection.ping().await.is_err());
///     bouncer.options().connect().await?.ping().await?;
///     Ok(())
/// }
/// ```
pub struct PgBouncer {
    url: Url,
    options: PgConnectOptions,
    version: (u32, u32, u32),
    process: Mutex<Process>,
}

/// Chooses how a [`PgBouncer`] starts.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing happens before `start`"]
pub struct PgBouncerBuilder {
    program: Option<PathBuf>,
    include: Option<PathBuf>,
    settings: Vec<(String, String)>,
}

impl PgBouncer {
    /// One in front of this database, with nothing set.
    ///
    /// Cancel-safe: one that is starting ends.
    ///
    /// # Errors
    ///
    /// As [`PgBouncerBuilder::start`] has them.
    pub async fn start(db: &TestDb) -> Result<PgBouncer, Error> {
        PgBouncer::builder().start(db).await
    }

    /// To set something first.
    pub fn builder() -> PgBouncerBuilder {
        PgBouncerBuilder::default()
    }

    /// The address of the database through it: `postgres://role@localhost:port/database?host=folder&pgbouncer=true`.
    ///
    /// There is no password in it. The parameter `pgbouncer` tells `db_core` what it is about to talk to; sqlx warns of it in its
    /// log, and goes on.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The address of another database of the server through it, or that of its own administration, `pgbouncer`.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        address::with_database(&self.url, database).into()
    }

    /// The same as [`url`](PgBouncer::url), for sqlx, and without the startup parameter `extra_float_digits`, which sqlx
    /// sends unless told not to, and `PgBouncer` refuses unless told to ignore it.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Such as `(1, 24, 1)`. From `(1, 21, 0)` on, it can follow prepared statements.
    #[must_use]
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// The id of its process; `None` when it was killed or has ended by itself.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().pid()
    }

    /// What it has logged so far, the starts before a [restart](PgBouncer::restart) included.
    ///
    /// # Errors
    ///
    /// [`Error::PgBouncer`] when the file cannot be read.
    pub fn log(&self) -> Result<String, Error> {
        self.process().log()
    }

    /// Kills it with `SIGKILL`, and returns when it is gone, within some milliseconds: clients get an end of file, the
    /// server sees its sessions closed, and nobody can connect until a [`restart`](PgBouncer::restart).
    ///
    /// # Errors
    ///
    /// [`Error::PgBouncer`] when the operating system refuses.
    pub fn kill(&self) -> Result<(), Error> {
        self.process().kill()
    }

    /// [Kills](PgBouncer::kill) it if it runs, starts it again at the same address, and waits until clients can connect.
    ///
    /// Not cancel-safe: it may run, or not yet listen.
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

    /// A panic of somebody who held it leaves it as it is: each order is complete by itself.
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PgBouncerBuilder {
    /// How many sessions of the server it opens at most, for each database and role.
    pub fn default_pool_size(self, sessions: u32) -> PgBouncerBuilder {
        self.setting("default_pool_size", sessions.to_string())
    }

    /// For how many prepared statements of a client it keeps track in each session of the server; with 0 it does not.
    /// Before 1.21 it does not know this setting, and does not start.
    pub fn max_prepared_statements(self, statements: u32) -> PgBouncerBuilder {
        self.setting("max_prepared_statements", statements.to_string())
    }

    /// Any setting of its section `[pgbouncer]`. The last one wins, over the kit's own as well.
    ///
    /// # Panics
    ///
    /// When there is a line break in it.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> PgBouncerBuilder {
        let (name, value) = (name.into(), value.into());
        assert!(!name.contains('\n') && !value.contains('\n'), "the setting {name:?} has a line break");
        self.settings.push((name, value));
        self
    }

    /// A file of settings, such as that of production. The kit's own settings win over it: where to listen and to log, who
    /// may connect, and that the server is this test's.
    pub fn include(mut self, file: impl Into<PathBuf>) -> PgBouncerBuilder {
        self.include = Some(file.into());
        self
    }

    /// The program, such as an old one; no other place is then looked at.
    pub fn program(mut self, program: impl Into<PathBuf>) -> PgBouncerBuilder {
        self.program = Some(program.into());
        self
    }

    /// Starts it in front of this database, and waits until clients can connect. Whether the server lets it in is found out by
    /// the first of them.
    ///
    /// Takes some 40 ms, and blocks for half of them. Cancel-safe: one that is starting ends.
    ///
    /// # Errors
    ///
    /// [`Error::NoPgBouncer`] when there is no program; [`Error::PgBouncerFailed`] when it ends at once, with what it said;
    /// [`Error::PgBouncer`] when the operating system refuses something; [`Error::TimedOut`] after 20 seconds.
    pub async fn start(self, db: &TestDb) -> Result<PgBouncer, Error> {
        self.start_before(db.test_server(), &db.direct_url(), &db.options()).await
    }

    /// Starts it in front of this server. Its address is that of the database in which others are made; see
    /// [`url_of`](PgBouncer::url_of).
    ///
    /// # Errors
    ///
    /// As [`start`](PgBouncerBuilder::start) has them.
    pub async fn to_server(self, server: &TestServer) -> Result<PgBouncer, Error> {
        let options = server.maintenance()?;
        let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        self.start_before(server, &server.url_of(&database), &options).await
    }

    async fn start_before(
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
        // After sqlx has read it, which would warn of a parameter that it does not know.
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
