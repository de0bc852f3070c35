//! Stale prepared statements and types.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{CloseReason, Conn, Error, Pool, TxOptions, TxRetry};
use db_testkit::TestDb;
use futures_util::TryStreamExt;
use sqlx::Row;

use crate::support::{patient_pool, take};

const SELECT: &str = "select * from t";
const UPDATE: &str = "update t set n = n + 1 returning *";

/// A pool of `max` connections, each with both statements prepared.
async fn prepared(db: &TestDb, max: usize) -> Pool {
    let pool = patient_pool(db, u32::try_from(max).expect("small"));
    sqlx::raw_sql("create table t (n int); insert into t values (1)")
        .execute(&db.pool())
        .await
        .expect("a table");
    for conn in &mut take(&pool, max).await {
        sqlx::query(SELECT).execute(&mut *conn).await.expect("prepared");
        sqlx::query(UPDATE).execute(&mut *conn).await.expect("prepared");
    }
    sqlx::query("update t set n = 1").execute(&db.pool()).await.expect("reset");
    pool
}

/// Adds a column to the table. Returns the number of columns.
async fn alter(db: &TestDb) -> usize {
    sqlx::raw_sql("alter table t add column more int").execute(&db.pool()).await.expect("altered");
    2
}

/// Makes the server forget prepared statements in a way that no text shows.
async fn deallocate(conn: &mut Conn) {
    sqlx::query("select forget()").execute(conn).await.expect("forgotten");
}

#[db_testkit::test]
async fn a_changed_table_fails_no_statement_of_the_pool(db: TestDb) {
    let pool = prepared(&db, 4).await;
    let columns = alter(&db).await;

    for mut conn in take_one_by_one(&pool).await {
        let row = sqlx::query(SELECT).fetch_one(&mut conn).await.expect("a row");
        assert_eq!(row.columns().len(), columns);
    }
    let row = sqlx::query(SELECT).fetch_one(pool.handle()).await.expect("a row");
    assert_eq!(row.columns().len(), columns);
    assert_eq!(pool.stats().totals.stale_plans, 1, "found once for all connections");
    assert_eq!(pool.stats().totals.dialled, 4, "no connection was replaced");
}

/// Acquires all four connections, and runs the statement on the first.
async fn take_one_by_one(pool: &Pool) -> Vec<Conn> {
    sqlx::query(SELECT).execute(pool.handle()).await.expect("healed");
    take(pool, 4).await
}

#[db_testkit::test]
async fn connections_in_use_refresh_their_plans(db: TestDb) {
    let pool = prepared(&db, 4).await;
    let mut held = take(&pool, 4).await;
    let columns = alter(&db).await;

    for conn in &mut held {
        let row = sqlx::query(SELECT).fetch_one(conn).await.expect("a row");
        assert_eq!(row.columns().len(), columns);
    }
    assert_eq!(pool.stats().totals.stale_plans, 4);
}

#[db_testkit::test]
async fn every_way_of_running_a_statement_refreshes_a_stale_plan(db: TestDb) {
    let pool = prepared(&db, 1).await;
    let refreshes = async |way: u32, conn: &mut Conn| -> (usize, u64) {
        let count = |rows: Vec<sqlx::postgres::PgRow>| (rows[0].columns().len(), rows.len() as u64);
        match way {
            0 => (sqlx::query(SELECT).fetch_one(conn).await.expect("a row").columns().len(), 1),
            1 => count(sqlx::query(SELECT).fetch_all(conn).await.expect("rows")),
            2 => count(sqlx::query(SELECT).fetch(conn).try_collect().await.expect("rows")),
            3 => (0, sqlx::query(SELECT).execute(conn).await.expect("done").rows_affected()),
            _ => (0, sqlx::query(UPDATE).execute(conn).await.expect("done").rows_affected()),
        }
    };
    for way in 0..5 {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        // The first refresh forgets all plans.
        sqlx::query(UPDATE).execute(&mut conn).await.expect("prepared");
        sqlx::query("update t set n = 1").execute(&mut conn).await.expect("reset");
        alter_again(&db, way).await;
        let columns = if way < 3 { way as usize + 2 } else { 0 };
        assert_eq!(refreshes(way, &mut conn).await, (columns, 1), "way {way}");
        assert_eq!(pool.stats().totals.stale_plans, u64::from(way) + 1, "way {way}");
    }
    let n: i32 = sqlx::query_scalar("select n from t").fetch_one(&db.pool()).await.expect("a number");
    assert_eq!(n, 2, "the repeated update was applied once");
}

async fn alter_again(db: &TestDb, n: u32) {
    let sql = sqlx::AssertSqlSafe(format!("alter table t add column more{n} int"));
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("altered");
}

#[db_testkit::test]
async fn every_executor_method_of_a_handle_refreshes_a_stale_plan(db: TestDb) {
    let pool = prepared(&db, 1).await;
    let db_handle = || pool.handle();

    alter_again(&db, 0).await;
    assert_eq!(sqlx::query(SELECT).fetch_one(db_handle()).await.expect("a row").columns().len(), 2);
    alter_again(&db, 1).await;
    assert_eq!(sqlx::query(SELECT).fetch_all(db_handle()).await.expect("rows")[0].columns().len(), 3);
    alter_again(&db, 2).await;
    let rows: Vec<_> = sqlx::query(SELECT).fetch(db_handle()).try_collect().await.expect("rows");
    assert_eq!(rows[0].columns().len(), 4);
    alter_again(&db, 3).await;
    assert_eq!(sqlx::query(SELECT).execute(db_handle()).await.expect("done").rows_affected(), 1);
    assert_eq!(pool.stats().totals.stale_plans, 4);
}

#[db_testkit::test]
async fn statements_that_the_server_has_forgotten_are_prepared_again(db: TestDb) {
    let pool = prepared(&db, 4).await;
    sqlx::query(
        "create function forget() returns void language plpgsql as $$ begin execute 'deallocate all'; end $$",
    )
    .execute(&db.pool())
    .await
    .expect("a function");
    for conn in &mut take(&pool, 4).await {
        deallocate(conn).await;
    }

    for mut conn in take_one_by_one(&pool).await {
        sqlx::query(SELECT).fetch_one(&mut conn).await.expect("by fetch_one");
        sqlx::query(SELECT).fetch_all(&mut conn).await.expect("by fetch_all");
        sqlx::query(UPDATE).execute(&mut conn).await.expect("by execute");
    }
    assert_eq!(pool.stats().totals.stale_plans, 1);

    let mut conn = pool.handle().acquire().await.expect("a connection");
    deallocate(&mut conn).await;
    let rows: Vec<_> = sqlx::query(SELECT).fetch(&mut conn).try_collect().await.expect("by fetch");
    assert_eq!(rows.len(), 1);
    drop(conn);
    assert_eq!((pool.stats().totals.dialled, pool.stats().totals.closed.of(CloseReason::Lost)), (4, 0));
}

#[db_testkit::test]
async fn in_a_transaction_a_stale_plan_is_an_error_and_the_next_transaction_works(db: TestDb) {
    let pool = prepared(&db, 1).await;
    let mut tx = pool.handle().begin().await.expect("begun");
    let columns = alter(&db).await;

    let error = Error::from(sqlx::query(SELECT).fetch_one(&mut tx).await.expect_err("stale"));

    assert_eq!(error.sqlstate().as_deref(), Some("0A000"), "{error}");
    assert!(matches!(tx.commit().await, Err(Error::Aborted)));
    let mut tx = pool.handle().begin().await.expect("begun");
    let row = sqlx::query(SELECT).fetch_one(&mut tx).await.expect("a row");
    assert_eq!(row.columns().len(), columns);
    assert_eq!(pool.stats().totals.stale_plans, 1);
}

#[db_testkit::test]
async fn a_transaction_that_failed_because_of_a_changed_table_is_repeated(db: TestDb) {
    for swallows in [false, true] {
        let db = &db;
        sqlx::raw_sql("drop table if exists t").execute(&db.pool()).await.expect("none");
        let pool = prepared(db, 1).await;
        let runs = AtomicU32::new(0);
        let runs = &runs;

        let columns = pool
            .handle()
            .tx_retry(TxOptions::default(), quick(), || {
                async move |tx| {
                    if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                        alter(db).await;
                    }
                    let row = sqlx::query(UPDATE).fetch_one(&mut *tx).await;
                    if swallows && row.is_err() {
                        return Ok(0);
                    }
                    Ok::<_, Error>(row?.columns().len())
                }
            })
            .await;

        assert_eq!(
            (columns.expect("success on the second run"), runs.load(Ordering::SeqCst)),
            (2, 2),
            "{swallows}"
        );
        let n: i32 = sqlx::query_scalar("select n from t").fetch_one(&db.pool()).await.expect("a number");
        assert_eq!(n, 2, "the update was applied once");
    }
}

fn quick() -> TxRetry {
    let pause = Duration::from_millis(1);
    TxRetry::default().retries(3).min_pause(pause).max_pause(pause).conflict_pause(pause)
}

#[db_testkit::test]
async fn a_users_own_forgotten_or_stale_statement_is_an_error_and_refreshes_no_plans(db: TestDb) {
    let pool = prepared(&db, 2).await;
    let mut held = take(&pool, 2).await;
    let conn = &mut held[0];
    sqlx::query("prepare p as select * from t").execute(&mut *conn).await.expect("prepared");
    sqlx::query("prepare q as select * from t").execute(&mut *conn).await.expect("prepared");
    sqlx::raw_sql("execute p; execute q").execute(&mut *conn).await.expect("run");
    alter(&db).await;

    for (sql, code) in [
        ("execute nope", "26000"),
        ("explain execute nope", "26000"),
        ("deallocate nope", "26000"),
        ("do $$ begin execute 'execute nope'; end $$", "26000"),
        ("/* mine */ execute p", "0A000"),
        ("explain execute q", "0A000"),
    ] {
        let error = Error::from(sqlx::query(sql).execute(&mut *conn).await.expect_err(sql));
        assert_eq!(error.sqlstate().as_deref(), Some(code), "{sql}: {error}");
        let error = Error::from(sqlx::raw_sql(sql).execute(&mut *conn).await.expect_err(sql));
        assert_eq!(error.sqlstate().as_deref(), Some(code), "{sql} as raw text: {error}");
        let error = sqlx::query(sql).fetch(&mut *conn).try_collect::<Vec<_>>().await.expect_err(sql);
        assert_eq!(Error::from(error).sqlstate().as_deref(), Some(code), "{sql} as a stream");
    }
    assert_eq!(pool.stats().totals.stale_plans, 0, "no plans were forgotten");

    // The driver's own statements, which the changed table has made stale as well, are refreshed.
    sqlx::query(SELECT).execute(&mut held[1]).await.expect("healed");
    assert_eq!(pool.stats().totals.stale_plans, 1);
}

#[db_testkit::test]
async fn an_error_that_only_looks_like_a_stale_plan_is_not_repeated(db: TestDb) {
    let pool = patient_pool(&db, 1);
    for code in ["0A000", "26000"] {
        sqlx::raw_sql(
            "drop sequence if exists runs; create sequence runs;
             create or replace function refuse(code text) returns int language plpgsql as $$
             begin perform nextval('runs'); raise exception 'cached plan must not change result type' using errcode = code; end $$",
        )
        .execute(&db.pool())
        .await
        .expect("a function");
        let runs = async || -> i64 {
            sqlx::query_scalar("select last_value from runs where is_called")
                .fetch_one(&db.pool())
                .await
                .expect("a count")
        };
        let refuse = || sqlx::query("select refuse($1)").bind(code);

        let error = Error::from(refuse().execute(pool.handle()).await.expect_err("refused"));
        assert_eq!((error.sqlstate().as_deref(), runs().await), (Some(code), 1));

        let error = Error::from(refuse().fetch_all(pool.handle()).await.expect_err("refused"));
        assert_eq!((error.sqlstate().as_deref(), runs().await), (Some(code), 2));

        let result = pool
            .handle()
            .tx_retry(TxOptions::default(), quick(), || {
                async move |tx| {
                    refuse().execute(&mut *tx).await?;
                    Ok::<_, Error>(())
                }
            })
            .await;
        assert_eq!((result.expect_err("refused").sqlstate().as_deref(), runs().await), (Some(code), 3));
    }
    assert_eq!(pool.stats().totals.stale_plans, 0);
}

/// A value of the type `mood`, which a migration may create again.
pub(crate) struct Mood;

impl sqlx::Type<sqlx::Postgres> for Mood {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        sqlx::postgres::PgTypeInfo::with_name("mood")
    }
}

impl sqlx::postgres::PgHasArrayType for Mood {
    fn array_type_info() -> sqlx::postgres::PgTypeInfo {
        sqlx::postgres::PgTypeInfo::array_of("mood")
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for Mood {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        buffer.extend_from_slice(b"fine");
        Ok(sqlx::encode::IsNull::No)
    }
}

pub(crate) async fn create_mood(db: &TestDb) {
    sqlx::raw_sql("drop type if exists mood; create type mood as enum ('fine')")
        .execute(&db.pool())
        .await
        .expect("a type");
}

#[db_testkit::test]
async fn a_type_that_was_created_again_fails_one_statement_of_the_pool(db: TestDb) {
    create_mood(&db).await;
    for array in [false, true] {
        let ask = async |conn: &mut Conn, sql: &'static str| {
            let query = sqlx::query(sql);
            let query = if array { query.bind(vec![Mood]) } else { query.bind(Mood) };
            query.execute(conn).await
        };
        let pool = patient_pool(&db, 4);
        for conn in &mut take(&pool, 4).await {
            ask(conn, "select $1").await.expect("known");
        }
        create_mood(&db).await;

        // A prepared statement and a new one.
        let mut failed = 0;
        for sql in ["select $1", "select $1 as other", "select $1", "select $1 as third"] {
            let mut conn = pool.handle().acquire().await.expect("a connection");
            failed += u32::from(ask(&mut conn, sql).await.is_err());
        }
        for conn in &mut take(&pool, 4).await {
            failed += u32::from(ask(conn, "select $1").await.is_err());
        }
        assert!(failed <= 1, "{failed}, array: {array}");
        assert!(pool.stats().totals.dialled <= 8, "{:?}", pool.stats().totals);
    }
}

#[db_testkit::test]
async fn a_transaction_that_failed_because_of_a_type_created_again_is_repeated(db: TestDb) {
    create_mood(&db).await;
    let pool = patient_pool(&db, 2);
    for conn in &mut take(&pool, 2).await {
        sqlx::query("select $1").bind(Mood).execute(conn).await.expect("known");
    }
    create_mood(&db).await;
    let runs = &AtomicU32::new(0);

    let result = pool
        .handle()
        .tx_retry(TxOptions::default(), quick(), || {
            async move |tx| {
                runs.fetch_add(1, Ordering::SeqCst);
                sqlx::query("select $1").bind(Mood).execute(&mut *tx).await?;
                Ok::<_, Error>(())
            }
        })
        .await;

    result.expect("success on the second run");
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}
