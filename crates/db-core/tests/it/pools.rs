//! Acquiring and returning connections.

use std::time::{Duration, Instant};

use db_core::{Class, Config, Error, Pool, PoolOptions};
use db_testkit::{TestDb, poll_then_drop};
use sqlx::Executor;

use crate::support::{PATIENCE, config, patient_pool, pool, until_repaired};

#[db_testkit::test]
async fn handles_connections_and_transactions_are_executors(db: TestDb) {
    let pool = pool(&db, 2);
    let one = || sqlx::query_scalar::<_, i32>("select 1");

    assert_eq!(one().fetch_one(pool.handle()).await.expect("by handle"), 1);

    let mut conn = pool.handle().acquire().await.expect("a connection");
    assert_eq!(one().fetch_one(&mut conn).await.expect("by connection"), 1);
    assert_eq!((&mut conn).fetch_all("select 1 union select 2").await.expect("rows").len(), 2);

    let mut tx = conn.begin().await.expect("a transaction");
    assert_eq!(one().fetch_all(&mut tx).await.expect("by transaction"), [1]);
    tx.commit().await.expect("committed");
}

/// The future of a statement is boxed, and glibc's allocator caches blocks of up to 1032 bytes for each thread (The GNU C
/// Library, "Memory Allocation Tunables", `glibc.malloc.tcache_max`); larger ones cost several times as much.
#[db_testkit::test]
async fn the_future_of_one_statement_fits_into_the_allocators_cached_blocks(db: TestDb) {
    let pool = pool(&db, 1);
    let statement = || sqlx::query("select $1").bind(1_i64);
    let small = |future: usize| assert!(future <= 1032, "{future} bytes");

    small(size_of_val(&*pool.handle().fetch_optional(statement())));
    small(size_of_val(&*pool.handle().execute(statement())));
    let mut conn = pool.handle().acquire().await.expect("a connection");
    small(size_of_val(&*conn.fetch_optional(statement())));
    small(size_of_val(&*conn.execute(statement())));
    let mut tx = conn.begin().await.expect("a transaction");
    small(size_of_val(&*tx.fetch_optional(statement())));
    small(size_of_val(&*tx.execute(statement())));
}

#[db_testkit::test]
async fn the_error_of_an_exhausted_pool_has_its_name_wait_numbers_and_call_site(db: TestDb) {
    let pool = pool(&db, 1);
    let _held = pool.handle().acquire().await.expect("the only connection");

    let (line, handle) = (line!(), pool.handle());
    let error = handle.acquire().await.expect_err("no second connection");

    let text = error.to_string();
    // The wait is 0.5 s, or more on a busy machine.
    assert!(text.starts_with("pool `test`: no connection came free within "), "{text}");
    assert!(text.contains(" s, 1 of 1 in use"), "{text}");
    assert!(text.contains(&format!("pools.rs:{line}")), "{text}");
    assert_eq!(Error::from(error).class(), Class::NotReached);
}

#[db_testkit::test]
async fn a_query_returns_the_acquire_error(db: TestDb) {
    let pool = pool(&db, 1);
    let _held = pool.handle().acquire().await.expect("the only connection");

    let error = sqlx::query("select 1").execute(pool.handle()).await.expect_err("no second connection");

    assert!(matches!(Error::from(error), Error::Acquire(error) if error.pool() == "test"));
}

#[db_testkit::test]
async fn the_error_of_a_pool_that_cannot_connect_has_the_reason(db: TestDb) {
    let nowhere = config(&db).with_database("no_such_database");
    let options = PoolOptions::api().acquire_timeout(Duration::from_millis(300));

    let error = Pool::new(&nowhere, options).handle().acquire().await.expect_err("no such database");

    assert!(error.to_string().contains("there is no database `no_such_database`"), "{error}");
}

#[db_testkit::test]
async fn a_pool_without_a_server_fails_within_its_limit(_db: TestDb) {
    let unreachable = Config::from_url("postgres://app@127.0.0.1:1/shop").expect("an address");
    let options = PoolOptions::api().acquire_timeout(Duration::from_millis(300));
    let started = Instant::now();

    let error = Pool::new(&unreachable, options).handle().acquire().await.expect_err("no server listens");

    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(error.to_string().contains("no server answers"), "{error}");
}

#[db_testkit::test]
async fn closing_waits_for_connections_in_use_until_the_deadline(db: TestDb) {
    let pool = pool(&db, 1);
    let held = pool.handle().acquire().await.expect("a connection");

    let closed = pool.close(Duration::from_millis(100)).await;
    assert!(
        !closed.in_time && closed.aborted[0].at.to_string().starts_with(file!()),
        "a connection was in use: {closed:?}"
    );
    let error = pool.handle().acquire().await.expect_err("closed");
    assert!(error.is_closed(), "{error}");

    drop(held);
    assert!(pool.close(Duration::from_secs(10)).await.is_clean(), "no connection is in use");
}

#[db_testkit::test]
async fn closing_also_closes_the_sqlx_pool(db: TestDb) {
    let pool = patient_pool(&db, 3);
    let theirs = pool.sqlx().clone();
    let held = theirs.acquire().await.expect("a connection of sqlx's pool");

    let closed = pool.close(Duration::from_millis(100)).await;

    assert!(!closed.in_time, "sqlx's connection is in use: {closed:?}");
    assert!(matches!(theirs.acquire().await, Err(sqlx::Error::PoolClosed)));
    drop(held);
    assert!(pool.close(PATIENCE).await.is_clean(), "no connection is in use");
    db.until_sessions("no session is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_closing_pool_returns_a_closed_sqlx_pool(db: TestDb) {
    let pool = patient_pool(&db, 3);
    let held = pool.handle().acquire().await.expect("a connection");
    assert!(poll_then_drop(pool.close(PATIENCE), 1).await.is_none(), "a connection is in use");

    assert!(matches!(pool.sqlx().acquire().await, Err(sqlx::Error::PoolClosed)));

    drop(held);
    assert!(pool.close(PATIENCE).await.is_clean());
}

#[db_testkit::test]
async fn an_idle_connection_that_was_killed_is_replaced_without_an_error(db: TestDb) {
    let options = PoolOptions::api().max(1).ping_after(Duration::ZERO);
    let pool = Pool::new(&config(&db), options);
    let pid = backend(&pool).await;
    sqlx::query("select pg_terminate_backend($1, 5000)").bind(pid).execute(&db.pool()).await.expect("killed");

    assert_ne!(backend(&pool).await, pid);
}

#[db_testkit::test]
async fn a_connection_lent_to_other_code_is_reset_before_its_next_use(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let lent = conn.pid();
    sqlx::query("select set_config('search_path', 'nowhere', false)")
        .execute(conn.as_sqlx().await.expect("lent"))
        .await
        .expect("a change that the text does not show");
    sqlx::query("select 1").execute(&mut conn).await.expect("an answer");
    drop(conn);

    let path: String = sqlx::query_scalar("show search_path").fetch_one(pool.handle()).await.expect("a path");
    assert_eq!(path, "\"$user\", public");
    assert_eq!(backend(&pool).await, lent, "the same connection");
}

#[db_testkit::test]
async fn a_changed_session_never_reaches_the_next_caller(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let first = backend(&pool).await;
    let fresh = session(&pool).await;
    for statement in [
        "begin",
        "set search_path = nowhere",
        "listen somewhere",
        "prepare p as select 1",
        "create temp table t (n int)",
        "/* a comment */ BEGIN READ ONLY",
    ] {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        sqlx::query(statement).execute(&mut conn).await.expect(statement);
        drop(conn);
        assert_eq!(session(&pool).await, fresh, "{statement}, on a connection");

        sqlx::query(statement).execute(pool.handle()).await.expect(statement);
        assert_eq!(session(&pool).await, fresh, "{statement}, on a handle");
    }
    sqlx::raw_sql("create temp table u (n int); begin").execute(pool.handle()).await.expect("raw text");
    assert_eq!(session(&pool).await, fresh, "raw text");
    assert_eq!(backend(&pool).await, first, "the same connection");
}

/// What the next caller could notice: whether a transaction is open, the settings, the channels, the named prepared statements, and the
/// temporary tables.
async fn session(pool: &Pool) -> (bool, String, i64, i64, i64) {
    until_repaired(pool).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    // This must be the first statement, since the clock of a transaction stands still.
    let open: bool = sqlx::query_scalar("select now() <> statement_timestamp() as open")
        .persistent(false)
        .fetch_one(&mut conn)
        .await
        .expect("a clock");
    let rest: (String, i64, i64, i64) = sqlx::query_as(
        "select current_setting('search_path') || current_setting('transaction_read_only'),
                (select count(*) from pg_listening_channels()),
                (select count(*) from pg_prepared_statements where name = 'p'),
                (select count(*) from pg_class where relpersistence = 't' and pg_table_is_visible(oid))",
    )
    .fetch_one(&mut conn)
    .await
    .expect("the session's state");
    (open, rest.0, rest.1, rest.2, rest.3)
}

#[db_testkit::test]
async fn a_clean_connection_is_returned_without_a_repair(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let first = backend(&pool).await;

    for _ in 0..20 {
        assert_eq!(backend(&pool).await, first);
    }
}

/// The server process of the pool's only connection.
async fn backend(pool: &Pool) -> i32 {
    until_repaired(pool).await;
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(pool.handle()).await.expect("a process id")
}

#[db_testkit::test]
async fn maximal_durations_mean_no_limit(db: TestDb) {
    let options = PoolOptions::api()
        .max(u32::MAX)
        .acquire_timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .max_lifetime(Duration::MAX)
        .ping_after(Duration::MAX)
        .keepalive(Duration::MAX)
        .statement_timeout(Duration::MAX)
        .tx_timeout(Duration::MAX)
        .slow_statement(Duration::MAX)
        .leak_after(Duration::MAX);
    let pool = Pool::new(&config(&db), options);

    // Without a limit, a panic in the dial would let this wait for ever.
    let begun = tokio::time::timeout(PATIENCE, pool.handle().begin()).await;
    let mut tx = begun.expect("no hang").expect("begun");
    sqlx::query("select 1").execute(&mut tx).await.expect("an answer");
    tx.commit().await.expect("committed");
    assert_eq!(pool.max_sessions(), u32::MAX);
    // sqlx adds each of its limits to the current time. For the two limits below, its tasks would panic unnoticed.
    sqlx::query("select 1").execute(pool.sqlx()).await.expect("an answer");
    let theirs = pool.sqlx().options();
    for limit in [theirs.get_idle_timeout(), theirs.get_max_lifetime()] {
        assert!(limit.is_some_and(|limit| Instant::now().checked_add(limit).is_some()), "{limit:?}");
    }
    assert!(pool.close(Duration::MAX).await.is_clean());
}

#[test]
fn connections_can_be_dropped_after_their_runtime() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    };
    let (kit, own) = (runtime(), runtime());
    let db = kit.block_on(TestDb::empty()).expect("a database");
    let (pool, clean, lost) = own.block_on(async {
        let pool = patient_pool(&db, 3);
        let clean = pool.handle().acquire().await.expect("a connection");
        let mut lost = pool.handle().begin().await.expect("begun");
        let die = sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut lost).await;
        assert!(die.is_err());
        (pool, clean, lost)
    });
    drop(own);

    drop((clean, lost));
    assert_eq!(pool.stats().in_use, 0);
}
