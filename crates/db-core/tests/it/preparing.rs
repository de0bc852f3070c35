//! What each session of a pool is told, and what is run on it, before its first use.

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

/// Changes the session by a text that shows it, which costs it a `DISCARD ALL`.
async fn discard(pool: &Pool) {
    let mut conn = pool.handle().acquire().await.expect("a connection");
    conn.execute("set search_path to nowhere").await.expect("set");
    drop(conn);
    until_repaired(pool).await;
}

#[db_testkit::test]
async fn each_session_begins_with_the_settings_of_the_pool_and_returns_to_them(db: TestDb) {
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
async fn a_setting_that_no_session_can_have_is_refused_by_its_name_and_without_its_value(db: TestDb) {
    for (name, says) in [
        ("no_such_setting", "no_such_setting"),
        ("timezone", "the driver says timezone itself"),
        ("Idle_In_Transaction_Session_Timeout", "PoolOptions::tx_timeout"),
    ] {
        let pool = Pool::new(&config(&db), options().set(name, "4711s"));

        let error = pool.handle().acquire().await.expect_err(name);

        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("4711"), "{error}");
        assert!(error.waited() < PATIENCE / 4, "it waited: {error}");
    }
}

/// Makes a temporary table on each connection, and counts how often.
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
async fn what_is_run_after_connect_is_run_before_the_first_use_and_again_after_all_was_discarded(db: TestDb) {
    let count = Arc::default();
    let pool = Pool::new(&config(&db), prepared(options().reset(Reset::Rollback), &count));

    for runs in 1..=3 {
        sqlx::query("insert into seen values (1)").execute(pool.handle()).await.expect("the table is there");
        assert_eq!(count.load(Ordering::Relaxed), runs);
        discard(&pool).await;
    }
    assert_eq!(pool.stats().totals.dialled, 1, "the session was kept");
}

#[db_testkit::test]
async fn a_connection_that_cannot_be_prepared_is_handed_to_nobody_and_callers_are_told_why(db: TestDb) {
    let broken = options().after_connect(|conn| {
        Box::pin(async move {
            conn.execute("select * from nowhere").await?;
            Ok(())
        })
    });
    let pool = Pool::new(&config(&db), broken);

    let error = pool.handle().acquire().await.expect_err("not prepared").to_string();

    assert!(error.contains("after_connect failed: relation \"nowhere\" does not exist (42P01)"), "{error}");
    assert_eq!(pool.stats().open, 0);
}

#[db_testkit::test]
async fn behind_a_pooler_nothing_can_be_run_after_connect(db: TestDb) {
    let count = Arc::default();
    let config: Config = config(&db).with_pooler(Pooler::Transaction);
    let pool = Pool::new(&config, prepared(options(), &count));

    let error = pool.handle().acquire().await.expect_err("refused").to_string();

    assert!(error.contains("leave after_connect out"), "{error}");
    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert!(ConnectFailure::AfterConnect { said: String::new(), is_final: true }.is_final());
}

#[db_testkit::test]
async fn a_connection_keeps_as_many_prepared_statements_as_its_pool_says(db: TestDb) {
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
async fn an_error_says_which_kind_of_constraint_was_not_met(db: TestDb) {
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
