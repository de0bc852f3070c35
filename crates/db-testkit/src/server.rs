//! The server that tests run on.

use std::env;
use std::str::FromStr;
use std::sync::Arc;

use db_embedded::{Builder, Server};
use sha2::{Digest, Sha256};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::db::TestDb;
use crate::error::Error;
use crate::given::Given;
use crate::migrations::Migrations;

/// For many tests at once, each with a pool or two.
const SETTINGS: [(&str, &str); 1] = [("max_connections", "400")];

/// What a test connects to before its database exists, on a server of ours.
const MAINTENANCE: &str = "postgres";

/// What sessions of the kit call themselves, to be told from those that are tested.
pub(crate) const OURSELVES: &str = "db-testkit";

/// A server that makes databases for tests. Cloning it is cheap; a server of ours runs as long as a clone, or a
/// [`TestDb`] on it, lives somewhere.
#[derive(Clone, Debug)]
pub struct TestServer(Arc<Origin>);

#[derive(Debug)]
enum Origin {
    /// Of one test process, whose databases go with it. It is never swept: after a crash of the server their locks are
    /// gone, and they are not.
    Private(Server),
    /// Of every test process of this user.
    Shared(Server),
    Given(Box<Given>),
}

impl TestServer {
    /// The server that [`TestDb::create`] uses: that of `DATABASE_URL`, or else the one that all tests of this OS user
    /// share and that starts by itself.
    ///
    /// Cancel-safe: a server that is starting goes when nobody takes it.
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

    /// A server of this test alone, which may be [stopped](TestServer::stop), frozen and filled up.
    ///
    /// While it is leased, a server of ours that dies is started again, and what was committed there is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Server`].
    pub async fn throwaway() -> Result<TestServer, Error> {
        let builder = with_settings(Server::throwaway());
        // Or the server would lose the last commits when it is killed, and tests could not tell that from a fault of theirs.
        TestServer::start(builder.setting("synchronous_commit", "on")).await
    }

    /// A server as the builder describes it, such as a kept one that a test stops and starts again.
    ///
    /// # Errors
    ///
    /// [`Error::Server`].
    pub async fn start(builder: Builder) -> Result<TestServer, Error> {
        Ok(TestServer(Arc::new(Origin::Private(lease(builder).await?))))
    }

    /// A database with these migrations; see [`TestDb::create`].
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`] says what is known.
    pub async fn create(&self, migrations: impl Into<Migrations>) -> Result<TestDb, Error> {
        TestDb::create_on(self.clone(), Some(migrations.into())).await
    }

    /// A database without anything in it; see [`TestDb::empty`].
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`] says what is known.
    pub async fn empty(&self) -> Result<TestDb, Error> {
        TestDb::create_on(self.clone(), None).await
    }

    /// The lease on the server, when it is ours: its process id, its socket. `None` when `DATABASE_URL` names it.
    #[must_use]
    pub fn embedded(&self) -> Option<&Server> {
        match &*self.0 {
            Origin::Private(server) | Origin::Shared(server) => Some(server),
            Origin::Given(_) => None,
        }
    }

    /// A server that only this test uses, or else says what cannot be done to it.
    pub(crate) fn private(&self, done: &'static str) -> Result<&Server, Error> {
        match &*self.0 {
            Origin::Private(server) => Ok(server),
            Origin::Shared(_) | Origin::Given(_) => Err(Error::NotPrivate { done }),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.embedded().is_some()
    }

    /// Whether other test processes may have left something there.
    pub(crate) fn has_strangers(&self) -> bool {
        !matches!(&*self.0, Origin::Private(_))
    }

    /// For messages.
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

    /// Where to ask for a new database. Our own statements are slow by nature, and nothing to log.
    pub(crate) fn maintenance(&self) -> Result<PgConnectOptions, Error> {
        Ok(match &*self.0 {
            Origin::Private(_) | Origin::Shared(_) => self.options_of(MAINTENANCE)?,
            Origin::Given(given) => given.options(),
        }
        .application_name(OURSELVES)
        .disable_statement_logging())
    }
}

/// A pooler between a test and the server must not run as root either.
async fn lease(builder: Builder) -> Result<Server, Error> {
    let started = tokio::task::spawn_blocking(|| builder.allow_service_account().start()).await;
    started.expect("the start of a server does not panic").map_err(Error::Server)
}

fn with_settings(builder: Builder) -> Builder {
    SETTINGS.iter().fold(builder, |builder, (name, value)| builder.setting(*name, *value))
}

/// What is asked for besides the settings. One that was started without it goes on as it is.
const ADMITS: &str = "admits its account";

/// Another one for other settings or other programs, so that nobody joins a server that differs from what it asked for.
fn shared_name() -> String {
    let programs = env::var_os("DB_EMBEDDED_PGBIN").unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(format!("{SETTINGS:?} {ADMITS} {}", programs.display()));
    format!("testkit-{}", const_hex::encode(&hash.finalize()[..4]))
}
