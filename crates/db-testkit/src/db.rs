//! The database of one test.

use std::fmt;
use std::sync::Arc;

use db_embedded::Server;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::database::Database;
use crate::error::Error;
use crate::pgbouncer::PgBouncer;
use crate::server::{APPLICATION_NAME, TestServer};

/// A database for one test. Dropping the value ends all sessions in the database and drops it. In a test of
/// [`#[db_testkit::test]`](macro@crate::test) the database lives until the test has ended and was looked at, whenever the value
/// is dropped.
///
/// The drop blocks for some 20 ms. It uses a thread and a connection of its own, so it works in any runtime, after the
/// runtime's end, and in a panic. [`drop_now`](TestDb::drop_now) does the same without blocking, and returns failures.
pub struct TestDb(Arc<Database>);

impl TestDb {
    pub(crate) fn new(database: Database) -> TestDb {
        TestDb(Arc::new(database))
    }

    /// Another owner of the same database. Its pool is the same, too.
    pub(crate) fn share(&self) -> TestDb {
        TestDb(Arc::clone(&self.0))
    }

    pub(crate) fn database(&self) -> &Arc<Database> {
        &self.0
    }

    /// The name of the database.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The address for the tested code. With `DATABASE_URL` it contains that address's password.
    ///
    /// With `DB_TESTKIT_THROUGH=pgbouncer` in the environment it leads through a [`PgBouncer`], so that a whole suite can run
    /// through one. [`options`](TestDb::options) and [`pool`](TestDb::pool), with which the test inspects the database, do not. What a
    /// test leaves is not looked at then: the sessions are the pooler's.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.through.get().map_or_else(|| self.direct_url(), PgBouncer::url)
    }

    /// The address of the database itself, whatever the environment says: for code that cannot go through a pooler.
    #[must_use]
    pub fn direct_url(&self) -> String {
        self.0.server.url_of(&self.0.name)
    }

    /// The address of the database itself, for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.0.options.clone()
    }

    /// A pool of up to five connections, made at the first call, for the test's own statements and for code that takes a pool.
    ///
    /// [`sessions`](TestDb::sessions), [`locks`](TestDb::locks) and the waits leave these connections out, so that a test can
    /// hold one while it watches the tested code. The look at the end of a test does not: a transaction, a statement or a lock
    /// that is left on this pool fails the test.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    #[must_use]
    pub fn pool(&self) -> PgPool {
        self.0
            .pool
            .get_or_init(|| {
                let options = self.options().application_name(APPLICATION_NAME);
                PgPoolOptions::new().max_connections(5).connect_lazy_with(options)
            })
            .clone()
    }

    /// The lease on the server that the kit has started; `None` with `DATABASE_URL`.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.0.server.embedded()
    }

    /// The server that the database is on, to [stop](TestServer::stop) it, or to make more databases there.
    #[must_use]
    pub fn test_server(&self) -> &TestServer {
        &self.0.server
    }

    /// The server's name in messages.
    pub(crate) fn server_name(&self) -> &'static str {
        self.0.server.name()
    }

    /// Ends all sessions in the database and drops it.
    ///
    /// Cancel safe: then the drop of the value does the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the server refuses or is gone.
    pub async fn drop_now(self) -> Result<(), Error> {
        self.0.drop_now().await
    }
}

impl fmt::Debug for TestDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
