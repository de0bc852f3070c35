//! A pool behind a network that fails on demand, and what must hold afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use db_core::{Config, Conn, Error, Pool, PoolOptions};
use db_testkit::{Proxy, Session, TestDb, until};
use futures_util::future::join_all;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use super::panics;

/// Well above any deadline of the pools in these tests: what takes longer hangs.
pub(super) const HANGS: Duration = Duration::from_secs(20);

/// For calls whose end is no deadline's.
pub(super) const LONG: Duration = Duration::from_secs(15);

/// What a call may take beyond its deadline, on a busy machine.
pub(super) const SLACK: Duration = Duration::from_secs(2);

/// What the pools call themselves on the server.
pub(super) const NAME: &str = "tested";

/// And what the connection that cancels calls itself.
pub(super) const CONTROL: &str = "tested control";

/// A pool of so many connections, which asks each for a sign of life before it hands it out. Its deadlines are far away.
pub(super) fn options(max: u32) -> PoolOptions {
    PoolOptions::api()
        .name(NAME.to_owned())
        .max(max)
        .ping_after(Duration::ZERO)
        .acquire_timeout(LONG)
        .statement_timeout(LONG)
}

/// The same, with so much time for a connection and for a statement.
pub(super) fn hasty(max: u32, acquire: Duration, statement: Duration) -> PoolOptions {
    options(max).acquire_timeout(acquire).statement_timeout(statement)
}

/// A pool at this address.
pub(super) fn pool(url: &str, options: PoolOptions) -> Pool {
    panics::watch();
    Pool::new(&Config::from_url(url).expect("an address"), options)
}

/// A proxy before the test's database, and a pool behind it.
pub(super) fn stage(db: &TestDb, options: PoolOptions) -> (Proxy, Pool) {
    let proxy = Proxy::start(db).expect("a proxy");
    let pool = pool(&proxy.url(), options);
    (proxy, pool)
}

/// Awaits what has a deadline of its own; fails when it has missed that by far.
pub(super) async fn ends<T>(call: impl Future<Output = T>) -> T {
    timeout(HANGS, call).await.expect("the call hangs")
}

/// One statement, with an answer that no other has.
pub(super) async fn ask(pool: &Pool, number: i64) -> Result<(), Error> {
    let question = sqlx::query_scalar("select $1::int8 * 2").bind(number).fetch_one(pool.handle());
    let answer: i64 = ends(question).await?;
    assert_eq!(answer, number * 2, "somebody else's answer");
    Ok(())
}

/// Takes as many connections as there may be, at the same time, and has each answer.
pub(super) async fn take_all(pool: &Pool) -> Vec<Conn> {
    join_all((0..pool.limits().max).map(|number| async move {
        let mut conn = ends(pool.handle().acquire()).await.expect("a connection");
        let question = sqlx::query_scalar("select $1::int8 * 2").bind(i64::from(number)).fetch_one(&mut conn);
        let answer: i64 = ends(question).await.expect("an answer");
        assert_eq!(answer, i64::from(number) * 2, "somebody else's answer");
        conn
    }))
    .await
}

/// Waits until the connection that cancels is ready. Says where it leads.
pub(super) async fn until_control(db: &TestDb) -> i32 {
    let is_ready = |session: &&Session| {
        session.application_name == CONTROL
            && !session.is_running()
            && session.query.contains("pg_cancel_backend")
    };
    let sessions = db.until_sessions("it is ready", |all| all.iter().any(|session| is_ready(&session))).await;
    sessions.iter().find(is_ready).expect("as was just seen").pid
}

/// Opens as many connections as there may be, and leaves them idle. Says where they lead.
pub(super) async fn fill(pool: &Pool) -> BTreeSet<i32> {
    let conns = take_all(pool).await;
    conns.iter().map(|conn| conn.pid()).collect()
}

/// Waits until the pool has nothing to do.
pub(super) async fn until_at_rest(pool: &Pool) {
    until("the pool is at rest", async || {
        let stats = pool.stats();
        stats.in_use + stats.repairing + stats.dialling + stats.waiting == 0
    })
    .await;
}

/// All places have come back, each with a connection that answers, and no task has panicked on the way.
pub(super) async fn recovers(pool: &Pool) {
    until_at_rest(pool).await;
    let conns = take_all(pool).await;
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.waiting), (stats.max, 0), "{stats:?}");
    drop(conns);
    until_at_rest(pool).await;
    let stats = pool.stats();
    assert!(stats.open <= stats.max, "{stats:?}");
    panics::assert_none();
}

/// Keeps statements waiting on the server until it is opened.
pub(super) struct Gate<'a> {
    db: &'a TestDb,
    holder: PgConnection,
}

impl<'a> Gate<'a> {
    /// The statement that waits. What it took is released with its transaction.
    pub(super) const WAIT: &'static str = "select pg_advisory_xact_lock(1)";

    pub(super) async fn shut(db: &'a TestDb) -> Self {
        let mut holder = db.pool().acquire().await.expect("the test's own connection").detach();
        sqlx::query("select pg_advisory_lock(1)").execute(&mut holder).await.expect("shut");
        Self { db, holder }
    }

    /// Waits until so many sessions wait. Says where they are.
    pub(super) async fn until_waiting(&self, count: usize) -> Vec<i32> {
        let waits = |session: &Session| session.wait.as_deref() == Some("Lock: advisory");
        let sessions = self.db.until_sessions("statements wait", |all| {
            all.iter().filter(|session| waits(session)).count() == count
        });
        sessions.await.iter().filter(|session| waits(session)).map(|session| session.pid).collect()
    }

    pub(super) async fn open(mut self) {
        sqlx::query("select pg_advisory_unlock(1)").execute(&mut self.holder).await.expect("open");
    }
}

/// A table that a pool's own tests would not have.
pub(super) async fn table(db: &TestDb) {
    sqlx::query("create table t (n int)").execute(&db.pool()).await.expect("a table");
}

/// How many rows are committed there.
pub(super) async fn rows(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count")
}
