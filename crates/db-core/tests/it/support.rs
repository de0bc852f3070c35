//! Helpers shared by the tests.

use std::time::Duration;

use db_core::{Config, Conn, ConnectRetry, Pool, PoolOptions, connect::connect};
use db_testkit::{Session, TestDb, TestServer, until};

/// The limit for each wait in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

/// A pool of `max` connections with an acquire timeout of 0.5 s.
pub(crate) fn pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = Duration::from_millis(500);
    Pool::new(&config(db), PoolOptions::api().name("test").max(max).acquire_timeout(acquire_timeout))
}

/// As [`pool`], with an acquire timeout that is long enough to replace connections.
pub(crate) fn patient_pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = PATIENCE;
    Pool::new(&config(db), PoolOptions::api().name("test").max(max).acquire_timeout(acquire_timeout))
}

/// The number of sessions of a pool's connections, without its control connection.
pub(crate) fn of_connections(sessions: &[Session]) -> usize {
    sessions.iter().filter(|session| !session.application_name.ends_with(" control")).count()
}

/// Waits until returned connections are repaired. During a slow repair, the next caller may get another session.
pub(crate) async fn until_repaired(pool: &Pool) {
    until("no connection is in repair", async || pool.stats().repairing == 0).await;
}

/// Acquires this number of connections at the same time.
pub(crate) async fn take(pool: &Pool, count: usize) -> Vec<Conn> {
    let mut conns = Vec::new();
    for _ in 0..count {
        conns.push(pool.handle().acquire().await.expect("a connection"));
    }
    conns
}

/// A server of the test's own where the role `app` needs the password `right`.
pub(crate) struct Guarded {
    /// Dropped before the server.
    db: TestDb,
    server: TestServer,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        let server = TestServer::throwaway().await.expect("a server");
        let db = server.empty().await.expect("a database");
        sqlx::raw_sql("create role app login password 'right'").execute(&db.pool()).await.expect("a role");
        let hba = server.embedded().expect("a server of its own").data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).expect("pg_hba.conf");
        std::fs::write(&hba, format!("local all app scram-sha-256\n{rules}")).expect("a rule");
        sqlx::raw_sql("select pg_reload_conf()").execute(&db.pool()).await.expect("reloaded");
        let guarded = Self { db, server };
        let right = guarded.config("app:right");
        // Before the rule is in force, the role may not log in at all.
        until("the rule is in force", async || connect(&right, ConnectRetry::default()).await.is_ok()).await;
        guarded
    }

    /// The server's database, for the superuser.
    pub(crate) fn db(&self) -> &TestDb {
        &self.db
    }

    pub(crate) fn server(&self) -> &TestServer {
        &self.server
    }

    /// The address of the server's database with this `user:password`.
    pub(crate) fn config(&self, login: &str) -> Config {
        let embedded = self.server.embedded().expect("a server of its own");
        let host = embedded.socket_dir().display().to_string().replace('/', "%2F");
        let address = format!("postgres://{login}@{host}:{}/{}", embedded.port(), self.db.name());
        Config::from_url(&address).expect("an address")
    }
}
