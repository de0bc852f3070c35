//! A database of one test.

use std::fmt;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use db_embedded::Server;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::admin::Admin;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::migrations::Migrations;
use crate::pgbouncer::{PgBouncer, PgBouncerBuilder};
use crate::server::{OURSELVES, TestServer};
use crate::sweep::sweep;
use crate::template;

/// "The source database is being accessed by other users", and "there is no such database": somebody has just made, or
/// just swept, the template.
const TEMPLATE_MOVES: [&str; 2] = ["55006", "3D000"];

/// What the code under test goes through.
const THROUGH: &str = "DB_TESTKIT_THROUGH";

/// When a server does not answer, its databases are left to the next sweep.
const DROP_PATIENCE: Duration = Duration::from_secs(10);

/// A database for one test. Dropping the value drops the database, with everybody who is connected to it.
///
/// The drop blocks the thread for some 20 ms, on a thread and connection of its own, so it works in any runtime, after
/// its end, and in a panic. [`drop_now`](TestDb::drop_now) does the same without blocking, and tells of failures.
pub struct TestDb {
    name: String,
    server: TestServer,
    options: PgConnectOptions,
    pool: OnceLock<PgPool>,
    /// What the tested code is to go through, if that was asked for.
    through: Option<Box<PgBouncer>>,
    /// Its session holds the lock that protects the database from being swept. `None` when the database is gone.
    admin: Option<Admin>,
}

impl TestDb {
    /// A database with these migrations applied, on the [shared server](TestServer::shared).
    ///
    /// Takes the path of a folder (relative to the working folder, which `cargo test` sets to that of the package) or a
    /// [`Migrator`](sqlx::migrate::Migrator). They run once for all tests; this one gets a copy.
    ///
    /// Cancel-safe: what was half made is dropped by a later test.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`] says what is known.
    pub async fn create(migrations: impl Into<Migrations>) -> Result<TestDb, Error> {
        TestServer::shared().await?.create(migrations).await
    }

    /// A database without anything in it, on the [shared server](TestServer::shared).
    ///
    /// Cancel-safe, as [`create`](TestDb::create) is.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`] says what is known.
    pub async fn empty() -> Result<TestDb, Error> {
        TestServer::shared().await?.empty().await
    }

    pub(crate) async fn create_on(
        server: TestServer,
        migrations: Option<Migrations>,
    ) -> Result<TestDb, Error> {
        let deadline = Deadline::begin();
        let migrations = match migrations {
            Some(migrations) => Some(migrations.resolve().await?),
            None => None,
        };
        let mut admin = Admin::connect(&server, deadline).await?;
        if server.has_strangers() {
            sweep(&mut admin).await?;
        }
        loop {
            let template = match &migrations {
                Some(migrations) => template::ensure(&server, &mut admin, migrations, deadline).await?,
                // Not template1: somebody may be connected to it, or have put something into it.
                None => "template0".to_owned(),
            };
            let name = format!("tk_{}_{}", random_name(), admin.home());
            // Before it exists, or another test's sweep would take it for a leftover.
            if !admin.try_lock(&name).await? {
                continue;
            }
            match admin.clone_database(&name, &template).await {
                Ok(()) => {
                    let options = server.options_of(&name)?;
                    let pool = OnceLock::new();
                    let mut db = TestDb { name, server, options, pool, through: None, admin: Some(admin) };
                    if std::env::var_os(THROUGH).is_some_and(|through| through == "pgbouncer") {
                        db.through = Some(Box::new(for_many_clients().start(&db).await?));
                    }
                    return Ok(db);
                }
                Err(error)
                    if error.sqlstate().is_some_and(|state| TEMPLATE_MOVES.contains(&state.as_str())) =>
                {
                    admin.unlock(&name).await?;
                    deadline.pause("the template to be free for copying").await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The name of the database.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, for whatever the test starts. With `DATABASE_URL` it contains that address's password.
    ///
    /// With `DB_TESTKIT_THROUGH=pgbouncer` in the environment it is that of a [`PgBouncer`] in front of it, so that a whole suite
    /// goes through one; [`options`](TestDb::options) and [`pool`](TestDb::pool), by which a test looks at what it tests, do
    /// not.
    #[must_use]
    pub fn url(&self) -> String {
        self.through.as_ref().map_or_else(|| self.direct_url(), |through| through.url())
    }

    /// The address of the database itself, whatever the environment says: for what cannot go through a pooler.
    #[must_use]
    pub fn direct_url(&self) -> String {
        self.server.url_of(&self.name)
    }

    /// The same for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// A pool of up to five connections, made at the first call: for the test itself, to look at what it tests. Its sessions
    /// are not among the [`sessions`](TestDb::sessions).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn pool(&self) -> PgPool {
        self.pool
            .get_or_init(|| {
                let options = self.options().application_name(OURSELVES);
                PgPoolOptions::new().max_connections(5).connect_lazy_with(options)
            })
            .clone()
    }

    /// The lease on the server, when it is ours: its process id, its socket. `None` when `DATABASE_URL` names it.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.server.embedded()
    }

    pub(crate) fn test_server(&self) -> &TestServer {
        &self.server
    }

    /// For messages.
    pub(crate) fn server_name(&self) -> &'static str {
        self.server.name()
    }

    /// Drops the database, with everybody who is connected to it.
    ///
    /// Cancel-safe: dropping the value finishes it.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the server refuses or is gone.
    pub async fn drop_now(mut self) -> Result<(), Error> {
        self.through = None;
        if let Some(admin) = &mut self.admin {
            admin.drop_by_force(&self.name).await?;
        }
        if let Some(admin) = self.admin.take() {
            admin.close().await;
        }
        Ok(())
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        self.through = None;
        // Held until the database is gone. Its runtime may be gone, or wait for us: so it cannot do the work itself.
        let Some(_lock) = &self.admin else { return };
        let dropped = thread::scope(|scope| {
            let thread = thread::Builder::new().name("db-testkit-drop".into());
            match thread.spawn_scoped(scope, || drop_blocking(&self.server, &self.name)) {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("its thread panicked".into())),
                Err(error) => Err(error.into()),
            }
        });
        if let Err(error) = dropped {
            // A test has no other place to hear of it, and it is no reason to fail.
            eprintln!("db-testkit: the database {} stays for now: {error}", self.name);
        }
    }
}

fn drop_blocking(server: &TestServer, name: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dropped = tokio::time::timeout(DROP_PATIENCE, async {
            let mut admin = Admin::connect(server, Deadline::begin()).await?;
            admin.drop_by_force(name).await?;
            admin.close().await;
            Ok(())
        });
        match dropped.await? {
            // A server of ours that is gone took its databases along: such tests kill it on purpose.
            Err(Error::Connect { .. }) if server.is_ours() => Ok(()),
            result => Ok(result?),
        }
    })
}

/// For suites that were written for the server itself.
fn for_many_clients() -> PgBouncerBuilder {
    PgBouncer::builder().default_pool_size(80).setting("max_client_conn", "1000").max_prepared_statements(200)
}

fn random_name() -> String {
    std::iter::repeat_with(|| fastrand::alphanumeric().to_ascii_lowercase()).take(10).collect()
}

impl fmt::Debug for TestDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options: they show the password.
        f.debug_struct("TestDb")
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
