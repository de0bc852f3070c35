//! Making the database of a test, and the pooler in front of it.

use crate::admin::Admin;
use crate::database::{Database, HalfMade};
use crate::db::TestDb;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::migrations::Migrations;
use crate::pgbouncer::{PgBouncer, PgBouncerBuilder};
use crate::server::TestServer;
use crate::sweep::sweep;
use crate::template;

/// "The source database is being accessed by other users", and "there is no such database": another test has just made or just
/// dropped the template.
const TEMPLATE_MOVES: [&str; 2] = ["55006", "3D000"];

/// The environment variable that puts a pooler between the tested code and the database.
const THROUGH: &str = "DB_TESTKIT_THROUGH";

impl TestDb {
    /// A database with these migrations applied, on the [shared server](TestServer::shared).
    ///
    /// Takes a folder (relative to the working folder, which `cargo test` sets to that of the package) or a
    /// [`Migrator`](sqlx::migrate::Migrator). The migrations run once for all tests; this database is a copy.
    ///
    /// Cancel safe: a half-made database is dropped, and the drop of the future waits for that.
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

    async fn create_on(server: TestServer, migrations: Option<Migrations>) -> Result<TestDb, Error> {
        let deadline = Deadline::begin();
        let migrations = match migrations {
            Some(migrations) => Some(migrations.resolve().await?),
            None => None,
        };
        // Dropped after `admin`, whose session may still be making the database.
        let mut half_made = HalfMade { server: server.clone(), name: None };
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
            half_made.name = Some(name.clone());
            let made = admin.clone_database(&name, &template).await;
            half_made.name = None;
            match made {
                Ok(()) => {
                    let options = server.options_of(&name)?;
                    let db = TestDb::new(Database::new(name, server, options, admin));
                    if std::env::var_os(THROUGH).is_some_and(|through| through == "pgbouncer") {
                        let pooler = for_many_clients().start(&db).await?;
                        db.database().through.get_or_init(|| pooler);
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
}

impl TestServer {
    /// A database with these migrations; see [`TestDb::create`].
    ///
    /// # Errors
    ///
    /// The variants of [`Error`] say what was tried and what is known.
    pub async fn create(&self, migrations: impl Into<Migrations>) -> Result<TestDb, Error> {
        TestDb::create_on(self.clone(), Some(migrations.into())).await
    }

    /// An empty database; see [`TestDb::empty`].
    ///
    /// # Errors
    ///
    /// The variants of [`Error`] say what was tried and what is known.
    pub async fn empty(&self) -> Result<TestDb, Error> {
        TestDb::create_on(self.clone(), None).await
    }
}

impl PgBouncer {
    /// Starts one in front of this database, with default settings.
    ///
    /// Cancel safe: a process that is starting is killed.
    ///
    /// # Errors
    ///
    /// As [`PgBouncerBuilder::start`].
    pub async fn start(db: &TestDb) -> Result<PgBouncer, Error> {
        PgBouncer::builder().start(db).await
    }
}

impl PgBouncerBuilder {
    /// Starts it in front of this database, and waits until clients can connect. It does not check whether the server lets it
    /// in: the first client does.
    ///
    /// Takes some 40 ms, and blocks for half of them. Cancel safe: a process that is starting is killed.
    ///
    /// # Errors
    ///
    /// [`Error::NoPgBouncer`] without a usable program; [`Error::PgBouncerFailed`] with its log if it ends at once;
    /// [`Error::PgBouncer`] if the operating system refuses something; [`Error::TimedOut`] after 20 s.
    pub async fn start(self, db: &TestDb) -> Result<PgBouncer, Error> {
        self.start_before(db.test_server(), &db.direct_url(), &db.options()).await
    }
}

/// Settings for suites that are written for many direct connections.
fn for_many_clients() -> PgBouncerBuilder {
    PgBouncer::builder().default_pool_size(80).setting("max_client_conn", "1000").max_prepared_statements(200)
}

fn random_name() -> String {
    std::iter::repeat_with(|| fastrand::alphanumeric().to_ascii_lowercase()).take(10).collect()
}
