//! Read-only sessions: their server was demoted, or they are read-only by choice.

use std::collections::BTreeSet;

use db_core::{Class, CloseReason, Error, Pool, PoolOptions, Repeat, TxOptions};
use db_testkit::{TestDb, TestServer, until};

use crate::support::{Guarded, PATIENCE, patient_pool, take};

const WRITE: &str = "insert into t values (1)";

/// A server of the test's own with a table.
async fn stage() -> (TestServer, TestDb) {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    (server, db)
}

/// Sets the whole server to read-only or back, as an operator or a fail-over does.
async fn set_read_only(db: &TestDb, on: bool) {
    let set = format!("alter system set default_transaction_read_only = {on}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&db.pool()).await.expect("set");
    sqlx::raw_sql("select pg_reload_conf()").execute(&db.pool()).await.expect("reloaded");
}

/// Waits until the sessions have read the configuration.
async fn until_read_only(pool: &Pool, max: usize, on: &str) {
    until("the sessions have read the configuration", async || {
        let mut all = true;
        for mut conn in take(pool, max).await {
            let set: String = sqlx::query_scalar("show default_transaction_read_only")
                .fetch_one(&mut conn)
                .await
                .expect("a setting");
            all &= set == on;
        }
        all
    })
    .await;
}

async fn write(pool: &Pool) -> Result<(), Error> {
    sqlx::query(WRITE).execute(pool.handle()).await?;
    Ok(())
}

async fn pids(pool: &Pool, max: usize) -> BTreeSet<i32> {
    take(pool, max).await.iter().map(|conn| conn.pid()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_refused_by_a_demoted_server_replaces_all_its_sessions() {
    let (_server, db) = stage().await;
    for in_tx in [false, true] {
        let pool = patient_pool(&db, 4);
        let before = pids(&pool, 4).await;
        write(&pool).await.expect("the server accepts writes");
        set_read_only(&db, true).await;
        until_read_only(&pool, 4, "on").await;
        assert_eq!(pids(&pool, 4).await, before, "a ping does not find the demotion");

        let error = if in_tx {
            let work = pool.handle().tx(async |tx| {
                sqlx::query(WRITE).execute(&mut *tx).await?;
                Ok::<_, Error>(())
            });
            work.await.expect_err("refused")
        } else {
            write(&pool).await.expect_err("refused")
        };

        assert_eq!(error.sqlstate().as_deref(), Some("25006"), "{error}");
        assert_eq!((error.class(), error.repeat()), (Class::ReadOnly, Repeat::Later), "{error}");
        assert!(error.is_transient() && error.retry_after().is_some(), "{error}");
        // The next dial may reach another server.
        until("all old sessions are replaced", async || pids(&pool, 4).await.is_disjoint(&before)).await;
        // Sessions dialled now are known to be read-only, and only the one whose write is refused is replaced.
        let dialled = pool.stats().totals.dialled;
        let error = write(&pool).await.expect_err("refused");
        assert_eq!(error.repeat(), Repeat::Later, "{error}");
        until("the session is replaced", async || {
            let _all = pids(&pool, 4).await;
            pool.stats().totals.dialled > dialled
        })
        .await;
        assert_eq!(pool.stats().totals.dialled, dialled + 1, "one dial only");

        set_read_only(&db, false).await;
        until_read_only(&pool, 4, "off").await;
        for _ in 0..4 {
            write(&pool).await.expect("the server accepts writes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_role_on_a_writable_server_keeps_its_sessions() {
    let guarded = Guarded::start().await;
    sqlx::raw_sql(
        "create table t (n int); alter role app set default_transaction_read_only = on; grant insert on t to app",
    )
    .execute(&guarded.db().pool())
    .await
    .expect("a role");
    let config = guarded.config("app:right");
    let pool = Pool::new(&config, PoolOptions::api().max(3).acquire_timeout(PATIENCE));
    let before = pids(&pool, 3).await;

    for _ in 0..20 {
        let error = write(&pool).await.expect_err("refused");
        assert_eq!(error.sqlstate().as_deref(), Some("25006"), "{error}");
        assert_eq!((error.class(), error.repeat()), (Class::ReadOnly, Repeat::Never), "{error}");
    }

    assert_eq!(pids(&pool, 3).await, before);
    let totals = pool.stats().totals;
    assert_eq!(
        (totals.dialled, totals.closed.of(CloseReason::Lost), totals.repair_failed),
        (3, 0, 0),
        "{totals:?}"
    );
}

#[db_testkit::test]
async fn a_read_only_transaction_keeps_its_session(db: TestDb) {
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let pool = patient_pool(&db, 2);
    let before = pids(&pool, 2).await;
    for by_text in [false, true] {
        for _ in 0..10 {
            let options = if by_text { TxOptions::default() } else { TxOptions::default().read_only() };
            let work = pool.handle().tx_with(options, async |tx| {
                if by_text {
                    sqlx::query("set transaction read only").execute(&mut *tx).await?;
                }
                sqlx::query(WRITE).execute(&mut *tx).await?;
                Ok::<_, Error>(())
            });
            let error = work.await.expect_err("refused");
            assert_eq!((error.class(), error.repeat()), (Class::ReadOnly, Repeat::Never), "{error}");
        }
    }

    assert_eq!(pids(&pool, 2).await, before);
    assert_eq!(pool.stats().totals.dialled, 2);
    write(&pool).await.expect("the next transaction may write");
}

#[db_testkit::test]
async fn only_a_session_that_became_read_only_unnoticed_is_replaced(db: TestDb) {
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let pool = patient_pool(&db, 2);
    let before = pids(&pool, 2).await;
    sqlx::raw_sql(
        "create function spoil() returns text language sql
           as $$ select set_config('default_transaction_read_only', 'on', false) $$",
    )
    .execute(&db.pool())
    .await
    .expect("a function");
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let pid = conn.pid();
    sqlx::query("select spoil()").execute(&mut conn).await.expect("a change that the text does not show");

    sqlx::query(WRITE).execute(&mut conn).await.expect_err("refused");
    drop(conn);

    let others: BTreeSet<i32> = before.into_iter().filter(|other| *other != pid).collect();
    until("the session is gone", async || {
        let now = pids(&pool, 2).await;
        !now.contains(&pid) && now.is_superset(&others)
    })
    .await;
    for _ in 0..4 {
        write(&pool).await.expect("a writable session");
    }
}
