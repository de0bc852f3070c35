//! A pool behind a network that fails on demand, and the checks after a fault.

use std::collections::BTreeSet;
use std::time::Duration;

use db_core::{Config, Conn, Error, Pool, PoolOptions};
use db_testkit::{Proxy, Session, TestDb, until};
use futures_util::future::join_all;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use super::panics;

/// Well above every deadline of the pools in these tests: a call that takes longer hangs.
pub(super) const HANGS: Duration = Duration::from_secs(20);

/// For calls that no deadline should end.
pub(super) const LONG: Duration = Duration::from_secs(15);

/// How far a call may exceed its deadline on a busy machine.
pub(super) const SLACK: Duration = Duration::from_secs(2);

/// The `application_name` of the pools.
pub(super) const NAME: &str = "tested";

/// The `application_name` of their control connections, which cancel statements.
pub(super) const CONTROL: &str = "tested control";

/// Options for `max` connections that are pinged before each use. All time limits are long.
pub(super) fn options(max: u32) -> PoolOptions {
    PoolOptions::api()
        .name(NAME.to_owned())
        .max(max)
        .ping_after(Duration::ZERO)
        .acquire_timeout(LONG)
        .statement_timeout(LONG)
}

/// As [`options`], with these time limits for acquiring and for statements.
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

/// Awaits a call that has a deadline of its own, and fails if the call hangs.
pub(super) async fn ends<T>(call: impl Future<Output = T>) -> T {
    timeout(HANGS, call).await.expect("the call hangs")
}

/// Runs one statement whose answer is different for each number.
pub(super) async fn ask(pool: &Pool, number: i64) -> Result<(), Error> {
    let question = sqlx::query_scalar("select $1::int8 * 2").bind(number).fetch_one(pool.handle());
    let answer: i64 = ends(question).await?;
    assert_eq!(answer, number * 2, "the answer to another statement");
    Ok(())
}

/// Acquires the maximum of connections at the same time, and runs a statement on each.
pub(super) async fn take_all(pool: &Pool) -> Vec<Conn> {
    join_all((0..pool.limits().max).map(|number| async move {
        let mut conn = ends(pool.handle().acquire()).await.expect("a connection");
        let question = sqlx::query_scalar("select $1::int8 * 2").bind(i64::from(number)).fetch_one(&mut conn);
        let answer: i64 = ends(question).await.expect("an answer");
        assert_eq!(answer, i64::from(number) * 2, "the answer to another statement");
        conn
    }))
    .await
}

/// Waits until the control connection is ready. Returns its process id.
pub(super) async fn until_control(db: &TestDb) -> i32 {
    let is_ready = |session: &&Session| {
        session.application_name == CONTROL
            && !session.is_running()
            && session.query.contains("pg_cancel_backend")
    };
    let sessions = db
        .until_sessions("the control connection is ready", |all| all.iter().any(|session| is_ready(&session)))
        .await;
    sessions.iter().find(is_ready).expect("found above").pid
}

/// Opens the maximum of connections, and leaves them idle. Returns their process ids.
pub(super) async fn fill(pool: &Pool) -> BTreeSet<i32> {
    let conns = take_all(pool).await;
    conns.iter().map(|conn| conn.pid()).collect()
}

/// Waits until the pool is quiet: no checkouts, repairs, dials or waiting callers.
pub(super) async fn until_quiet(pool: &Pool) {
    until("the pool is quiet", async || {
        let stats = pool.stats();
        stats.in_use + stats.repairing + stats.dialling + stats.waiting == 0
    })
    .await;
}

/// Checks that all slots are free again with working connections, and that no task has panicked.
pub(super) async fn recovers(pool: &Pool) {
    until_quiet(pool).await;
    let conns = take_all(pool).await;
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.waiting), (stats.max, 0), "{stats:?}");
    drop(conns);
    until_quiet(pool).await;
    let stats = pool.stats();
    assert!(stats.open <= stats.max, "{stats:?}");
    panics::assert_none();
}

/// Keeps statements waiting on the server until the gate is opened.
pub(super) struct Gate<'a> {
    db: &'a TestDb,
    holder: PgConnection,
}

impl<'a> Gate<'a> {
    /// The statement that waits. Its lock is released with its transaction.
    pub(super) const WAIT: &'static str = "select pg_advisory_xact_lock(1)";

    pub(super) async fn shut(db: &'a TestDb) -> Self {
        let mut holder = db.pool().acquire().await.expect("the test's own connection").detach();
        sqlx::query("select pg_advisory_lock(1)").execute(&mut holder).await.expect("shut");
        Self { db, holder }
    }

    /// Waits until this number of sessions wait. Returns their process ids.
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

/// Creates the table `t`.
pub(super) async fn table(db: &TestDb) {
    sqlx::query("create table t (n int)").execute(&db.pool()).await.expect("a table");
}

/// The number of committed rows in the table `t`.
pub(super) async fn rows(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count")
}
