//! The effects of statements on their session, which the next caller must not see.

use db_core::{Pool, PoolOptions};
use db_testkit::{TestDb, until};
use sqlx::{AssertSqlSafe, Row};

use crate::support::{PATIENCE, config, until_repaired};

/// Everything in a session that could affect the next caller, as one text.
const LEFT: &str = "select concat_ws(', ', \
    (select string_agg('class ' || relname, ', ') from pg_class where relnamespace = pg_my_temp_schema()), \
    (select string_agg('function ' || proname, ', ') from pg_proc where pronamespace = pg_my_temp_schema()), \
    (select string_agg('type ' || typname, ', ') from pg_type where typnamespace = pg_my_temp_schema()), \
    (select string_agg('lock ' || objid, ', ') from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
    (select string_agg('channel ' || channel, ', ') from pg_listening_channels() channel), \
    (select string_agg('prepared ' || name, ', ') from pg_prepared_statements where from_sql), \
    (select string_agg('cursor ' || name, ', ') from pg_cursors where is_holdable), \
    (select string_agg(name || ' = ' || current_setting(name, true), ', ') \
        from unnest(array['kept.x', 'local.x', 'transaction.x', 'constraints.x']) name where current_setting(name, true) <> ''), \
    (select string_agg(name || ' = ' || setting, ', ') from pg_settings where source = 'session' and name !~ '^transaction_'), \
    case when current_user <> session_user then current_user end)";

/// A pool with a single session.
fn pool_of_one(db: &TestDb) -> Pool {
    let options = PoolOptions::api().max(1).acquire_timeout(PATIENCE);
    Pool::new(&config(db), options)
}

async fn left(pool: &Pool) -> String {
    until_repaired(pool).await;
    sqlx::query(LEFT).fetch_one(pool.handle()).await.expect("an answer").get(0)
}

#[db_testkit::test]
async fn the_next_caller_does_not_see_a_statements_effects_on_the_session(db: TestDb) {
    sqlx::raw_sql(
        "create table t (n int); create procedure p() language sql as 'select set_config(''kept.x'', ''1'', false)'",
    )
    .execute(&db.pool())
    .await
    .expect("a table and a procedure");
    let pool = pool_of_one(&db);
    let before = left(&pool).await;

    for sql in [
        "-- x\rbegin",
        "/* x */ -- y\r\nstart transaction",
        "set kept.x = 'a'",
        "set local.x = 'a'",
        "set transaction.x = 'a'",
        "set constraints.x = 'a'",
        "set role pg_monitor",
        "create temp table x (n int)",
        "create table pg_temp.x (n int)",
        "create table \"pg_temp\".x (n int)",
        "create function pg_temp.f() returns int language sql as 'select 1'",
        "create type pg_temp.e as enum ('a')",
        "select 1 as n into temp x",
        "with a as (select 1 as n) select n into local temporary table x from a",
        "select 1 as n into pg_temp.x",
        "do $$ begin perform set_config('kept.x', '1', false); end $$",
        "call p()",
        "explain analyze create temp table x as select 1",
        "explain (analyze) select set_config('kept.x', '1', false)",
        "select set_config('kept.x', '1', false)",
        "SELECT Pg_Catalog.\"set_config\"('kept.x', '1', 1 > 2)",
        "insert into t select length(set_config('kept.x', '1', false))",
        "select pg_advisory_lock(7)",
        "update t set n = 1 where pg_try_advisory_lock_shared(7)",
        "create table u as select pg_try_advisory_lock(7)",
        "listen kept",
        "prepare kept as select 1",
        "declare kept cursor with hold for select 1",
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(pool.handle()).await.expect(sql);

        assert_eq!(left(&pool).await, before, "{sql:?}");
        let open = "select count(*) from pg_stat_activity where state like 'idle in transaction%' \
                    and datname = current_database()";
        let open: i64 = sqlx::query_scalar(open).fetch_one(&db.pool()).await.expect("the activity");
        assert_eq!(open, 0, "{sql:?} left a transaction open");
    }
}

#[db_testkit::test]
async fn effects_that_end_with_the_transaction_need_no_repair(db: TestDb) {
    sqlx::raw_sql("create table t (n int)").execute(&db.pool()).await.expect("a table");
    let pool = pool_of_one(&db);

    for sql in [
        "set local kept.x = 'a'",
        "set transaction read write",
        "set constraints all deferred",
        "select set_config('kept.x', '1', true)",
        "select pg_advisory_xact_lock(7)",
        "select 'set_config(a, b, false)', 'pg_advisory_lock(1)' as temp from t",
        "create temp table x (n int) on commit drop",
        "declare kept cursor for select 1",
        "/* named */ select 1",
    ] {
        let mut tx = pool.handle().begin().await.expect("begun");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut tx).await.expect(sql);
        tx.commit().await.expect(sql);

        until("the connection is returned", async || pool.stats().in_use == 0).await;
        assert_eq!(pool.stats().totals.repaired, 0, "{sql:?}");
        assert_eq!(left(&pool).await, "", "{sql:?}");
    }
}
