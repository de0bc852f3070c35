//! Session settings and `after_connect`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use db_core::{Config, ConnectFailure, Error, Pool, PoolOptions, Pooler, Reset};
use db_testkit::TestDb;
use sqlx::Executor;

use crate::support::{PATIENCE, config, until_repaired};

fn options() -> PoolOptions {
    PoolOptions::named("shop").max(1).acquire_timeout(PATIENCE)
}

async fn setting(pool: &Pool, name: &str) -> String {
    let asked = sqlx::query_scalar("select current_setting($1)").bind(name);
    asked.fetch_one(pool.handle()).await.expect("a setting")
}

/// Changes the session by a statement whose text shows it, which leads to a `DISCARD ALL`.
async fn discard(pool: &Pool) {
    let mut conn = pool.handle().acquire().await.expect("a connection");
    conn.execute("set search_path to nowhere").await.expect("set");
    drop(conn);
    until_repaired(pool).await;
}

#[db_testkit::test]
async fn each_session_starts_with_the_settings_of_the_pool_and_returns_to_them(db: TestDb) {
    let options = options()
        .set("search_path", "one")
        .set("app.note", "a b\\c'd")
        .set("SEARCH_PATH", "app, \"My Schema\"")
        .set("application_name", "shop 7");
    let pool = Pool::new(&config(&db), options);

    for _ in 0..2 {
        assert_eq!(setting(&pool, "search_path").await, "app, \"My Schema\"");
        assert_eq!(setting(&pool, "app.note").await, "a b\\c'd");
        assert_eq!(setting(&pool, "application_name").await, "shop 7");
        discard(&pool).await;
    }
    assert_eq!(pool.stats().totals.dialled, 1, "the session was kept");
}

#[db_testkit::test]
async fn an_impossible_setting_is_refused_with_its_name_and_without_its_value(db: TestDb) {
    for (name, says) in [
        ("no_such_setting", "no_such_setting"),
        ("timezone", "the driver sets timezone itself"),
        ("Idle_In_Transaction_Session_Timeout", "PoolOptions::tx_timeout"),
    ] {
        let pool = Pool::new(&config(&db), options().set(name, "4711s"));

        let error = pool.handle().acquire().await.expect_err(name);

        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("4711"), "{error}");
        assert!(error.waited() < PATIENCE / 4, "the caller waited: {error}");
    }
}

/// Creates a temporary table on each new connection, and counts these runs.
fn prepared(options: PoolOptions, count: &Arc<AtomicU32>) -> PoolOptions {
    let count = Arc::clone(count);
    options.after_connect(move |conn| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            count.fetch_add(1, Ordering::Relaxed);
            conn.execute("create temp table seen (n int)").await?;
            Ok(())
        })
    })
}

#[db_testkit::test]
async fn after_connect_runs_before_the_first_use_and_after_each_discard_all(db: TestDb) {
    let count = Arc::default();
    let pool = Pool::new(&config(&db), prepared(options().reset(Reset::Rollback), &count));

    for runs in 1..=3 {
        sqlx::query("insert into seen values (1)").execute(pool.handle()).await.expect("the table exists");
        assert_eq!(count.load(Ordering::Relaxed), runs);
        discard(&pool).await;
    }
    assert_eq!(pool.stats().totals.dialled, 1, "the session was kept");
}

#[db_testkit::test]
async fn a_connection_whose_after_connect_fails_is_not_handed_out_and_the_error_has_the_reason(db: TestDb) {
    let broken = options().after_connect(|conn| {
        Box::pin(async move {
            conn.execute("select * from nowhere").await?;
            Ok(())
        })
    });
    let pool = Pool::new(&config(&db), broken);

    let error = pool.handle().acquire().await.expect_err("after_connect fails").to_string();

    assert!(
        error.contains(
            "after_connect failed on a new connection: relation \"nowhere\" does not exist (42P01)"
        ),
        "{error}"
    );
    assert_eq!(pool.stats().open, 0);
}

#[db_testkit::test]
async fn behind_a_pooler_after_connect_is_refused(db: TestDb) {
    let count = Arc::default();
    let config: Config = config(&db).with_pooler(Pooler::Transaction);
    let pool = Pool::new(&config, prepared(options(), &count));

    let error = pool.handle().acquire().await.expect_err("refused").to_string();

    assert!(error.contains("remove after_connect"), "{error}");
    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert!(ConnectFailure::AfterConnect { message: String::new(), is_final: true }.is_final());
}

#[db_testkit::test]
async fn a_connection_keeps_at_most_statement_cache_prepared_statements(db: TestDb) {
    for (size, kept) in [(0, 1), (3, 3)] {
        let pool = Pool::new(&config(&db), options().statement_cache(size));
        let mut conn = pool.handle().acquire().await.expect("a connection");
        for number in 0..10 {
            let sql = sqlx::AssertSqlSafe(format!("select {number} + $1"));
            sqlx::query(sql).bind(1).fetch_one(&mut conn).await.expect("a row");
        }

        let there = sqlx::raw_sql("select count(*) from pg_prepared_statements");
        let there: i64 = sqlx::Row::get(&conn.fetch_one(there).await.expect("a row"), 0);

        assert_eq!(there, kept);
    }
}

#[db_testkit::test]
async fn an_error_says_which_kind_of_constraint_was_violated(db: TestDb) {
    let pool = Pool::new(&config(&db), options());
    let tables = "create table rooms (id int primary key);
         create table bookings (
             room int not null references rooms, nights int check (nights > 0), days int4range,
             exclude using gist (days with &&)
         );
         insert into rooms values (1);
         insert into bookings values (1, 1, '[1,3)')";
    pool.handle().execute(sqlx::raw_sql(tables)).await.expect("tables");
    let questions = |error: &Error| {
        [
            error.is_unique_violation(),
            error.is_foreign_key_violation(),
            error.is_check_violation(),
            error.is_not_null_violation(),
            error.is_exclusion_violation(),
        ]
    };

    for (number, sql) in [
        "insert into rooms values (1)",
        "insert into bookings values (2, 1, null)",
        "insert into bookings values (1, 0, null)",
        "insert into bookings values (null, 1, null)",
        "insert into bookings values (1, 1, '[2,4)')",
    ]
    .into_iter()
    .enumerate()
    {
        let error = Error::from(sqlx::query(sql).execute(pool.handle()).await.expect_err(sql));

        let mut only = [false; 5];
        only[number] = true;
        assert_eq!(questions(&error), only, "{sql}: {error}");
    }
}
