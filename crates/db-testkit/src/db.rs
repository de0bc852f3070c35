//! The database of one test.

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
use crate::server::{APPLICATION_NAME, TestServer};
use crate::sweep::sweep;
use crate::template;

/// "The source database is being accessed by other users", and "there is no such database": another test has just made or just
/// dropped the template.
const TEMPLATE_MOVES: [&str; 2] = ["55006", "3D000"];

/// The environment variable that puts a pooler between the tested code and the database.
const THROUGH: &str = "DB_TESTKIT_THROUGH";

/// Limit for dropping a database. After it, the database is left to a later sweep.
const DROP_LIMIT: Duration = Duration::from_secs(10);

/// A database for one test. Dropping the value ends all sessions in the database and drops it.
///
/// The drop blocks for some 20 ms. It uses a thread and a connection of its own, so it works in any runtime, after the
/// runtime's end, and in a panic. [`drop_now`](TestDb::drop_now) does the same without blocking, and returns failures.
pub struct TestDb {
    name: String,
    server: TestServer,
    options: PgConnectOptions,
    pool: OnceLock<PgPool>,
    /// The pooler that [`url`](TestDb::url) leads through, if the environment asks for one.
    through: Option<Box<PgBouncer>>,
    /// Its session holds the lock that protects the database from a sweep. `None` once the database is dropped.
    admin: Option<Admin>,
}

impl TestDb {
    /// A database with these migrations applied, on the [shared server](TestServer::shared).
    ///
    /// Takes a folder (relative to the working folder, which `cargo test` sets to that of the package) or a
    /// [`Migrator`](sqlx::migrate::Migrator). The migrations run once for all tests; this database is a copy.
    ///
    /// Cancel safe: a half-made database is dropped by a later test.
    ///
    /// # Errors
    ///
    /// The variants of [`Error`] say what was tried and what is known.
    pub async fn create(migrations: impl Into<Migrations>) -> Result<TestDb, Error> {
        TestServer::shared().await?.create(migrations).await
    }

    /// An empty database on the [shared server](TestServer::shared).
    ///
    /// Cancel safe, as [`create`](TestDb::create) is.
    ///
    /// # Errors
    ///
    /// The variants of [`Error`] say what was tried and what is known.
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
        if server.may_have_leftovers() {
            sweep(&mut admin).await?;
        }
        loop {
            let template = match &migrations {
                Some(migrations) => template::ensure(&server, &mut admin, migrations, deadline).await?,
                // Not template1, which may have been changed or be in use.
                None => "template0".to_owned(),
            };
            let name = format!("tk_{}_{}", random_name(), admin.home());
            // Before the database exists, or another test's sweep would drop it.
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

    /// The address for the tested code. With `DATABASE_URL` it contains that address's password.
    ///
    /// With `DB_TESTKIT_THROUGH=pgbouncer` in the environment it leads through a [`PgBouncer`], so that a whole suite can run
    /// through one. [`options`](TestDb::options) and [`pool`](TestDb::pool), with which the test inspects the database, do not.
    #[must_use]
    pub fn url(&self) -> String {
        self.through.as_ref().map_or_else(|| self.direct_url(), |through| through.url())
    }

    /// The address of the database itself, whatever the environment says: for code that cannot go through a pooler.
    #[must_use]
    pub fn direct_url(&self) -> String {
        self.server.url_of(&self.name)
    }

    /// The address of the database itself, for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// A pool of up to five connections, made at the first call, with which the test inspects the database.
    /// [`sessions`](TestDb::sessions) leaves these connections out.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn pool(&self) -> PgPool {
        self.pool
            .get_or_init(|| {
                let options = self.options().application_name(APPLICATION_NAME);
                PgPoolOptions::new().max_connections(5).connect_lazy_with(options)
            })
            .clone()
    }

    /// The lease on the server that the kit has started; `None` with `DATABASE_URL`.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.server.embedded()
    }

    pub(crate) fn test_server(&self) -> &TestServer {
        &self.server
    }

    /// The server's name in messages.
    pub(crate) fn server_name(&self) -> &'static str {
        self.server.name()
    }

    /// Ends all sessions in the database and drops it.
    ///
    /// Cancel safe: then the drop of the value does the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the server refuses or is gone.
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
        // The lock is held until the database is gone. The runtime of its session may have ended, or be blocked by this drop,
        // so another session drops the database.
        let Some(_lock) = &self.admin else { return };
        let dropped = thread::scope(|scope| {
            let thread = thread::Builder::new().name("db-testkit-drop".into());
            match thread.spawn_scoped(scope, || drop_blocking(&self.server, &self.name)) {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("its thread panicked".into())),
                Err(error) => Err(error.into()),
            }
        });
        if let Err(error) = dropped {
            // A failure is only printed, as it is no reason to fail the test.
            eprintln!("db-testkit: the database {} was not dropped: {error}", self.name);
        }
    }
}

fn drop_blocking(server: &TestServer, name: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dropped = tokio::time::timeout(DROP_LIMIT, async {
            let mut admin = Admin::connect(server, Deadline::begin()).await?;
            admin.drop_by_force(name).await?;
            admin.close().await;
            Ok(())
        });
        match dropped.await? {
            // A dead server of ours took its databases along: some tests kill it on purpose.
            Err(Error::Connect { .. }) if server.is_ours() => Ok(()),
            result => Ok(result?),
        }
    })
}

/// Settings for suites that are written for many direct connections.
fn for_many_clients() -> PgBouncerBuilder {
    PgBouncer::builder().default_pool_size(80).setting("max_client_conn", "1000").max_prepared_statements(200)
}

fn random_name() -> String {
    std::iter::repeat_with(|| fastrand::alphanumeric().to_ascii_lowercase()).take(10).collect()
}

impl fmt::Debug for TestDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the options, which show the password.
        f.debug_struct("TestDb")
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
