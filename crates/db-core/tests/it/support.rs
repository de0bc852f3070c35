//! What the tests share.

use std::time::Duration;

use db_core::{Config, Conn, ConnectRetry, Pool, PoolOptions, connect::connect};
use db_testkit::{Session, TestDb, TestServer, until};

/// No wait in these tests is longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

/// A pool of so many connections, which waits for half a second.
pub(crate) fn pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = Duration::from_millis(500);
    Pool::new(&config(db), PoolOptions::api().name("test").max(max).acquire_timeout(acquire_timeout))
}

/// The same, with time enough for a pool whose connections are being replaced.
pub(crate) fn patient_pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = PATIENCE;
    Pool::new(&config(db), PoolOptions::api().name("test").max(max).acquire_timeout(acquire_timeout))
}

/// How many of these sessions are of a pool's connections: the one that cancels is not.
pub(crate) fn of_connections(sessions: &[Session]) -> usize {
    sessions.iter().filter(|session| !session.application_name.ends_with(" control")).count()
}

/// Waits until what was given back is repaired. A repair that takes long lets the next caller have another session meanwhile.
pub(crate) async fn until_repaired(pool: &Pool) {
    until("all are repaired", async || pool.stats().repairing == 0).await;
}

/// So many connections of the pool at once.
pub(crate) async fn take(pool: &Pool, count: usize) -> Vec<Conn> {
    let mut conns = Vec::new();
    for _ in 0..count {
        conns.push(pool.handle().acquire().await.expect("a connection"));
    }
    conns
}

/// A server of the test's own, where the role `app` needs the password `right`.
pub(crate) struct Guarded {
    /// Goes first.
    db: TestDb,
    server: TestServer,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        let server = TestServer::throwaway().await.expect("a server");
        let db = server.empty().await.expect("a database");
        sqlx::raw_sql("create role app login password 'right'").execute(&db.pool()).await.expect("a role");
        let hba = server.embedded().expect("one of its own").data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).expect("the rules");
        std::fs::write(&hba, format!("local all app scram-sha-256\n{rules}")).expect("a rule");
        sqlx::raw_sql("select pg_reload_conf()").execute(&db.pool()).await.expect("read again");
        let guarded = Self { db, server };
        let right = guarded.config("app:right");
        // Without the rule, the role may not log in at all.
        until("the rule is in force", async || connect(&right, ConnectRetry::default()).await.is_ok()).await;
        guarded
    }

    /// Its database, for the server's superuser.
    pub(crate) fn db(&self) -> &TestDb {
        &self.db
    }

    pub(crate) fn server(&self) -> &TestServer {
        &self.server
    }

    /// Its database for this `user:password`.
    pub(crate) fn config(&self, login: &str) -> Config {
        let embedded = self.server.embedded().expect("one of its own");
        let host = embedded.socket_dir().display().to_string().replace('/', "%2F");
        let address = format!("postgres://{login}@{host}:{}/{}", embedded.port(), self.db.name());
        Config::from_url(&address).expect("an address")
    }
}
