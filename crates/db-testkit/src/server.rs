//! The server that tests run on.

use std::env;
use std::str::FromStr;
use std::sync::Arc;

use db_embedded::{Builder, Server};
use sha2::{Digest, Sha256};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::error::Error;
use crate::given::Given;

/// Enough for many tests at once, each with a pool or two.
const SETTINGS: [(&str, &str); 1] = [("max_connections", "400")];

/// The database to connect to before a test's database exists, on a server of the kit.
const MAINTENANCE: &str = "postgres";

/// The application name of the kit's own sessions, which separates them from tested ones.
pub(crate) const APPLICATION_NAME: &str = "db-testkit";

/// A server that makes databases for tests. Cloning it is cheap; a server of the kit runs while a clone of it, or a
/// [`TestDb`](crate::TestDb) on it, exists.
#[derive(Clone, Debug)]
pub struct TestServer(Arc<Origin>);

#[derive(Debug)]
enum Origin {
    /// Used by one test process, whose databases end with it. It is never swept: a crash of the server removes the locks of
    /// databases in use.
    Private(Server),
    /// Shared by all test processes of this user.
    Shared(Server),
    Given(Box<Given>),
}

impl TestServer {
    /// The server that [`TestDb::create`](crate::TestDb::create) uses: that of `DATABASE_URL`, or else one that starts by itself
    /// and that all tests of this OS user share.
    ///
    /// Cancel safe: a server that is starting then stops.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] and [`Error::Server`].
    pub async fn shared() -> Result<TestServer, Error> {
        let origin = match env::var("DATABASE_URL") {
            Ok(address) if !address.is_empty() => Origin::Given(Box::new(Given::parse(&address)?)),
            Err(env::VarError::NotUnicode(_)) => {
                return Err(Error::Address { why: "it is not UTF-8".into() });
            }
            _ => Origin::Shared(lease(with_settings(Server::shared(&shared_name()))).await?),
        };
        Ok(TestServer(Arc::new(origin)))
    }

    /// A server for this test alone, which may be [stopped](TestServer::stop), frozen and filled up.
    ///
    /// If the server dies while it is leased, it is restarted with all committed data.
    ///
    /// # Errors
    ///
    /// [`Error::Server`].
    pub async fn throwaway() -> Result<TestServer, Error> {
        let builder = with_settings(Server::throwaway());
        // Or a killed server would lose its last commits, and tests could not distinguish that from a fault of the code.
        TestServer::start(builder.setting("synchronous_commit", "on")).await
    }

    /// A server made by this builder, such as a kept one that a test stops and starts again.
    ///
    /// # Errors
    ///
    /// [`Error::Server`].
    pub async fn start(builder: Builder) -> Result<TestServer, Error> {
        Ok(TestServer(Arc::new(Origin::Private(lease(builder).await?))))
    }

    /// The lease on the server that the kit has started; `None` with `DATABASE_URL`.
    #[must_use]
    pub fn embedded(&self) -> Option<&Server> {
        match &*self.0 {
            Origin::Private(server) | Origin::Shared(server) => Some(server),
            Origin::Given(_) => None,
        }
    }

    /// The server if this test alone uses it, or else an error that names the refused action.
    pub(crate) fn private(&self, done: &'static str) -> Result<&Server, Error> {
        match &*self.0 {
            Origin::Private(server) => Ok(server),
            Origin::Shared(_) | Origin::Given(_) => Err(Error::NotPrivate { done }),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.embedded().is_some()
    }

    /// Whether other test processes may have left databases there.
    pub(crate) fn may_have_leftovers(&self) -> bool {
        !matches!(&*self.0, Origin::Private(_))
    }

    /// The server's name in messages.
    pub(crate) fn name(&self) -> &'static str {
        if self.is_ours() { "our own server" } else { "the server of DATABASE_URL" }
    }

    pub(crate) fn url_of(&self, database: &str) -> String {
        match &*self.0 {
            Origin::Private(server) | Origin::Shared(server) => server.url(database),
            Origin::Given(given) => given.url_of(database),
        }
    }

    pub(crate) fn options_of(&self, database: &str) -> Result<PgConnectOptions, Error> {
        match &*self.0 {
            Origin::Private(server) | Origin::Shared(server) => {
                PgConnectOptions::from_str(&server.url(database))
                    .map_err(|error| Error::Address { why: error.to_string() })
            }
            Origin::Given(given) => Ok(given.options().database(database)),
        }
    }

    /// Connects to the maintenance database. The kit's own statements are slow by nature and not logged.
    pub(crate) fn maintenance(&self) -> Result<PgConnectOptions, Error> {
        Ok(match &*self.0 {
            Origin::Private(_) | Origin::Shared(_) => self.options_of(MAINTENANCE)?,
            Origin::Given(given) => given.options(),
        }
        .application_name(APPLICATION_NAME)
        .disable_statement_logging())
    }
}

/// In memory, where making and dropping a database is fastest. Lets in the service account, too, since a pooler between a test and the server must not run as root.
async fn lease(builder: Builder) -> Result<Server, Error> {
    let started = tokio::task::spawn_blocking(|| builder.allow_service_account().in_memory().start()).await;
    started.expect("the start of a server does not panic").map_err(Error::Server)
}

fn with_settings(builder: Builder) -> Builder {
    SETTINGS.iter().fold(builder, |builder, (name, value)| builder.setting(*name, *value))
}

/// The request beside the settings that decides which server to share. A running server keeps its access rules.
const ADMITS: &str = "admits its account";

/// A name that depends on settings and programs, so that a test joins only a server like the one it asks for.
fn shared_name() -> String {
    let programs = env::var_os("DB_EMBEDDED_PGBIN").unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(format!("{SETTINGS:?} {ADMITS} {}", programs.display()));
    format!("testkit-{}", const_hex::encode(&hash.finalize()[..4]))
}
