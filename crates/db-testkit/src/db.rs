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
use crate::pgbouncer::PgBouncer;
use crate::server::{APPLICATION_NAME, TestServer};

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
    /// The database `name`, whose lock the session of `admin` holds.
    pub(crate) fn new(name: String, server: TestServer, options: PgConnectOptions, admin: Admin) -> TestDb {
        TestDb { name, server, options, pool: OnceLock::new(), through: None, admin: Some(admin) }
    }

    /// Makes [`url`](TestDb::url) lead through a pooler, which ends with the value.
    pub(crate) fn lead_through(&mut self, pooler: PgBouncer) {
        self.through = Some(Box::new(pooler));
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

impl fmt::Debug for TestDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the options, which show the password.
        f.debug_struct("TestDb")
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
