//! Drops every public future at every await point.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use db_core::{CloseReason, Conn, Error, Isolation, Pool, PoolOptions, Reset, TxOptions, TxRetry};
use db_testkit::{TestDb, poll_then_drop, until};
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, SqlSafeStr};

use crate::support::{PATIENCE, config, patient_pool};

/// The number of futures that each of the five tests of dropped futures drops: together 10 000.
const DROPS: u32 = 2_000;

/// Creates a future, polls it a number of times and drops it. Returns whether it was done.
type Scenario = for<'a> fn(&'a Ground, usize) -> BoxFuture<'a, bool>;

/// A pool of one connection, so that whatever a dropped future has left affects the next caller.
struct Ground {
    db: TestDb,
    pool: Pool,
    /// The number of the current run, which its transactions store.
    run: AtomicU32,
}

impl Ground {
    async fn new(db: TestDb) -> Self {
        sqlx::raw_sql("create table seen (n bigserial); create table done (run int, part int)")
            .execute(&db.pool())
            .await
            .expect("tables");
        let pool = patient_pool(&db, 1);
        Self { db, pool, run: AtomicU32::new(0) }
    }

    fn run(&self) -> i32 {
        i32::try_from(self.run.load(Ordering::Relaxed)).expect("a small number")
    }

    /// Drops the futures of all scenarios at every await point, repeatedly, and checks the pool after each.
    async fn drop_everywhere(&self, scenarios: &[(&str, Scenario)]) {
        let mut drops = 0;
        while drops < DROPS {
            for (name, scenario) in scenarios {
                for polls in 0.. {
                    let run = self.run.fetch_add(1, Ordering::Relaxed) + 1;
                    let done = scenario(self, polls).await;
                    self.check(&format!("{name}, {polls} polls, run {run}"), done).await;
                    drops += u32::from(!done);
                    if done {
                        break;
                    }
                }
            }
        }
    }

    /// Checks that no slot is held, the next query gets its own answer, no transaction is open, and both parts were stored or none.
    async fn check(&self, what: &str, done: bool) {
        assert_eq!(self.pool.stats().in_use, 0, "{what}: a slot is held");

        let run = self.run();
        let own = fastrand::i64(..);
        let next: (i64, i64) = sqlx::query_as(
            "with n as (insert into seen default values returning n) select $1::int8, n from n",
        )
        .bind(own)
        .fetch_one(self.pool.handle())
        .await
        .unwrap_or_else(|error| panic!("{what}: {}", Error::from(error)));
        assert_eq!(next.0, own, "{what}: the answer to another statement");
        // The connection of the next query has left repair; another connection may still be in it.
        while self.pool.stats().repairing > 0 {
            tokio::task::yield_now().await;
        }
        // The server ends a closed session a moment later, and a pooler later still.
        until(&format!("{what}: no transaction is open"), async || {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity
                 where datname = current_database() and state like 'idle in transaction%'",
            )
            .fetch_one(&self.db.pool())
            .await
            .expect("an answer");
            open == 0
        })
        .await;
        let (visible, parts): (bool, i64) = sqlx::query_as(
            "select exists (select from seen where n = $1), (select count(*) from done where run = $2)",
        )
        .bind(next.1)
        .bind(run)
        .fetch_one(&self.db.pool())
        .await
        .expect("an answer");
        assert!(visible, "{what}: the next caller's row is in another open transaction");
        assert!(parts == 2 || (parts == 0 && !done), "{what}: {parts} of 2 parts are stored, done: {done}");
    }
}

/// Stores both parts, for scenarios that test something else.
async fn store_both(ground: &Ground) {
    sqlx::query("insert into done values ($1, 1), ($1, 2)")
        .bind(ground.run())
        .execute(&ground.db.pool())
        .await
        .expect("stored");
}

/// As [`store_both`], if the future was done.
async fn and_store(ground: &Ground, done: bool) -> bool {
    if done {
        store_both(ground).await;
    }
    done
}

fn part(
    ground: &Ground,
    part: i32,
) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query("insert into done values ($1, $2)").bind(ground.run()).bind(part)
}

#[db_testkit::test]
async fn a_dropped_future_of_a_pool_or_a_handle_does_not_affect_the_next_caller(db: TestDb) {
    let ground = Ground::new(db).await;
    ground
        .drop_everywhere(&[
            ("acquire", |ground, polls| {
                async move {
                    let done = poll_then_drop(ground.pool.handle().acquire(), polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("a second acquire, in the queue", |ground, polls| {
                async move {
                    let handle = ground.pool.handle();
                    let held = handle.acquire().await.expect("a connection");
                    let mut held = Some(held);
                    let mut second = Box::pin(handle.acquire());
                    // Requested while the only connection is in use; then the connection is returned, and on its way to the waiting caller.
                    assert!((&mut second).now_or_never().is_none());
                    drop(held.take());
                    let done = poll_then_drop(second, polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("ping", |ground, polls| {
                async move {
                    let done = poll_then_drop(ground.pool.ping(), polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("begin", |ground, polls| {
                async move {
                    let tx = poll_then_drop(ground.pool.handle().begin(), polls).await;
                    and_store(ground, tx.is_some()).await
                }
                .boxed()
            }),
            ("begin_with", |ground, polls| {
                async move {
                    let options = TxOptions::default().isolation(Isolation::Serializable).tenant("t");
                    let tx = poll_then_drop(ground.pool.handle().begin_with(options), polls).await;
                    and_store(ground, tx.is_some()).await
                }
                .boxed()
            }),
            ("tx", |ground, polls| {
                async move {
                    let work = ground.pool.handle().tx(async |tx| {
                        part(ground, 1).execute(&mut *tx).await?;
                        part(ground, 2).execute(&mut *tx).await?;
                        Ok::<_, Error>(())
                    });
                    poll_then_drop(work, polls).await.transpose().expect("committed").is_some()
                }
                .boxed()
            }),
            ("tx_retry", |ground, polls| {
                async move {
                    let options = TxOptions::default().resolve_commit();
                    let work = ground.pool.handle().tx_retry(options, TxRetry::default(), || {
                        async move |tx| {
                            part(ground, 1).execute(&mut *tx).await?;
                            part(ground, 2).execute(&mut *tx).await?;
                            Ok::<_, Error>(())
                        }
                    });
                    poll_then_drop(work, polls).await.transpose().expect("committed").is_some()
                }
                .boxed()
            }),
            ("one row by a handle", |ground, polls| {
                async move {
                    let query = sqlx::query("select repeat('x', 100000)").fetch_one(ground.pool.handle());
                    let done = poll_then_drop(query, polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
        ])
        .await;
}

#[db_testkit::test]
async fn a_dropped_future_of_a_connection_does_not_affect_the_next_caller(db: TestDb) {
    let ground = Ground::new(db).await;
    ground
        .drop_everywhere(&[
            ("execute", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let both = sqlx::query("insert into done values ($1, 1), ($1, 2)").bind(ground.run());
                    poll_then_drop(both.execute(&mut conn), polls)
                        .await
                        .transpose()
                        .expect("stored")
                        .is_some()
                }
                .boxed()
            }),
            ("many rows", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let rows = sqlx::query("select n, repeat('x', 1000) from generate_series(1, 300) n");
                    let done = poll_then_drop(rows.fetch_all(&mut conn), polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("a stream in the middle", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let mut rows = sqlx::query("select n, repeat('x', 1000) from generate_series(1, 300) n")
                        .fetch(&mut conn);
                    let read = async {
                        while rows.try_next().await.expect("a row").is_some() {
                            tokio::task::yield_now().await;
                        }
                    };
                    // Drops after every thirtieth row.
                    let done = poll_then_drop(read, polls * 30).await.is_some();
                    drop(rows);
                    drop(conn);
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("a raw BEGIN", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let raw = sqlx::raw_sql("begin; insert into done values (0, 0)").execute(&mut conn);
                    let done = poll_then_drop(raw, polls).await.is_some();
                    drop(conn);
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("ping", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let done = poll_then_drop(conn.ping(), polls).await.is_some();
                    drop(conn);
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("begin", |ground, polls| {
                async move {
                    let conn = ground.pool.handle().acquire().await.expect("a connection");
                    let tx = poll_then_drop(conn.begin(), polls).await;
                    let done = tx.is_some();
                    drop(tx);
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("prepare", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let sql = sqlx::AssertSqlSafe(format!("select {}", ground.run())).into_sql_str();
                    let done = poll_then_drop((&mut conn).prepare(sql), polls).await.is_some();
                    drop(conn);
                    and_store(ground, done).await
                }
                .boxed()
            }),
        ])
        .await;
}

#[db_testkit::test]
async fn a_dropped_future_of_a_transaction_leaves_all_of_it_or_nothing(db: TestDb) {
    let ground = Ground::new(db).await;
    ground
        .drop_everywhere(&[
            ("a statement", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let done = poll_then_drop(part(ground, 2).execute(&mut tx), polls).await.is_some();
                    if done {
                        tx.commit().await.expect("committed");
                    }
                    done
                }
                .boxed()
            }),
            ("commit", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    part(ground, 2).execute(&mut tx).await.expect("stored");
                    poll_then_drop(tx.commit(), polls).await.transpose().expect("committed").is_some()
                }
                .boxed()
            }),
            ("commit with resolve_commit", |ground, polls| {
                async move {
                    let options = TxOptions::default().resolve_commit();
                    let mut tx = ground.pool.handle().begin_with(options).await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    part(ground, 2).execute(&mut tx).await.expect("stored");
                    poll_then_drop(tx.commit(), polls).await.transpose().expect("committed").is_some()
                }
                .boxed()
            }),
            ("rollback", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let done = poll_then_drop(tx.rollback(), polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("an automatic rollback", |ground, polls| {
                async move {
                    let work = ground.pool.handle().tx(async |tx| {
                        part(ground, 1).execute(&mut *tx).await?;
                        Err::<(), _>(Error::Aborted)
                    });
                    let done = poll_then_drop(work, polls).await.is_some();
                    and_store(ground, done).await
                }
                .boxed()
            }),
        ])
        .await;
}

#[db_testkit::test]
async fn a_dropped_future_of_a_savepoint_undoes_only_the_savepoint(db: TestDb) {
    let ground = Ground::new(db).await;
    ground
        .drop_everywhere(&[
            ("savepoint", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let dropped = poll_then_drop(tx.savepoint(), polls).await.is_none();
                    // The transaction continues, wherever its savepoint was dropped.
                    part(ground, 2).execute(&mut tx).await.expect("stored");
                    tx.commit().await.expect("committed");
                    !dropped
                }
                .boxed()
            }),
            ("a statement in it", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let mut savepoint = tx.savepoint().await.expect("a savepoint");
                    let extra =
                        sqlx::query("insert into done select $1, 3 from pg_sleep(0)").bind(ground.run());
                    let done = poll_then_drop(extra.execute(&mut savepoint), polls).await.is_some();
                    drop(savepoint);
                    part(ground, 2).execute(&mut tx).await.expect("stored");
                    tx.commit().await.expect("committed");
                    done
                }
                .boxed()
            }),
            ("a failing statement in it", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let mut savepoint = tx.savepoint().await.expect("a savepoint");
                    let failing = sqlx::query("select 1 / 0").execute(&mut savepoint);
                    let done = poll_then_drop(failing, polls).await.is_some();
                    drop(savepoint);
                    part(ground, 2).execute(&mut tx).await.expect("stored");
                    tx.commit().await.expect("committed");
                    done
                }
                .boxed()
            }),
            ("its rollback", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    let mut savepoint = tx.savepoint().await.expect("a savepoint");
                    part(ground, 3).execute(&mut savepoint).await.expect("stored");
                    let done = poll_then_drop(savepoint.rollback(), polls).await.is_some();
                    let both = sqlx::query("insert into done values ($1, 1), ($1, 2)").bind(ground.run());
                    // The savepoint was undone; or the server undid it and the client did not see that, and the transaction fails.
                    let stored = both.execute(&mut tx).await.is_ok();
                    assert!(stored || !done, "the transaction continues after a rollback");
                    let committed = tx.commit().await.is_ok();
                    assert_eq!(stored, committed);
                    done
                }
                .boxed()
            }),
            ("its release", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let mut savepoint = tx.savepoint().await.expect("a savepoint");
                    part(ground, 2).execute(&mut savepoint).await.expect("stored");
                    let done = poll_then_drop(savepoint.release(), polls).await.is_some();
                    if done {
                        tx.commit().await.expect("committed");
                        return true;
                    }
                    // The second part was undone and is stored again; or the transaction has failed.
                    if part(ground, 2).execute(&mut tx).await.is_ok() {
                        tx.commit().await.expect("committed");
                    } else {
                        assert!(matches!(tx.commit().await, Err(Error::Aborted | Error::Statement(_))));
                    }
                    false
                }
                .boxed()
            }),
            ("nested with a closure", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    let nested = tx.nested(async |savepoint| {
                        part(ground, 1).execute(&mut *savepoint).await?;
                        part(ground, 2).execute(&mut *savepoint).await?;
                        Ok::<_, Error>(())
                    });
                    let done = poll_then_drop(nested, polls).await.is_some();
                    let committed = tx.commit().await.is_ok();
                    assert!(committed || !done);
                    done
                }
                .boxed()
            }),
        ])
        .await;
}

#[db_testkit::test]
async fn a_dropped_future_of_a_lent_connection_does_not_affect_the_next_caller(db: TestDb) {
    let ground = Ground::new(db).await;
    ground
        .drop_everywhere(&[
            ("a COPY FROM", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let done =
                        poll_then_drop(copy_in(conn.as_sqlx().await.expect("lent"), ground.run()), polls)
                            .await
                            .is_some();
                    drop(conn);
                    done
                }
                .boxed()
            }),
            ("a COPY TO", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let done =
                        poll_then_drop(copy_out(conn.as_sqlx().await.expect("lent")), polls).await.is_some();
                    drop(conn);
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("a COPY FROM in a transaction, and its commit", |ground, polls| {
                async move {
                    let work = ground.pool.handle().tx(async |tx| {
                        copy_in(tx.as_sqlx().await.expect("lent"), ground.run()).await;
                        Ok::<_, Error>(())
                    });
                    poll_then_drop(work, polls).await.transpose().expect("committed").is_some()
                }
                .boxed()
            }),
            ("a COPY TO in a savepoint, which is undone", |ground, polls| {
                async move {
                    let mut tx = ground.pool.handle().begin().await.expect("begun");
                    part(ground, 1).execute(&mut tx).await.expect("stored");
                    let mut savepoint = tx.savepoint().await.expect("a savepoint");
                    part(ground, 3).execute(&mut savepoint).await.expect("stored");
                    let done = poll_then_drop(copy_out(savepoint.as_sqlx().await.expect("lent")), polls)
                        .await
                        .is_some();
                    drop(savepoint);
                    // Either the savepoint is undone, or the session's answers cannot be trusted, and nothing is committed.
                    let stored = part(ground, 2).execute(&mut tx).await.is_ok();
                    assert!(stored || !done);
                    assert_eq!(tx.commit().await.is_ok(), stored);
                    stored
                }
                .boxed()
            }),
            ("a stream of several statements, and the one after it", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let mut rows =
                        sqlx::raw_sql("select n from generate_series(1, 300) n; select 1 / 0; select 1")
                            .fetch(conn.as_sqlx().await.expect("lent"));
                    let read = async { while let Ok(Some(_)) = rows.try_next().await {} };
                    let done = poll_then_drop(read, polls).await.is_some();
                    drop(rows);
                    let own = fastrand::i64(..);
                    let answer: i64 = sqlx::query_scalar("select $1")
                        .bind(own)
                        .fetch_one(&mut conn)
                        .await
                        .expect("the statement's own answer");
                    assert_eq!(answer, own);
                    drop(conn);
                    and_store(ground, done).await
                }
                .boxed()
            }),
            ("a transaction of sqlx's own", |ground, polls| {
                async move {
                    let mut conn = ground.pool.handle().acquire().await.expect("a connection");
                    let work = async {
                        let mut tx = conn.as_sqlx().await.expect("lent").begin().await?;
                        part(ground, 1).execute(&mut *tx).await?;
                        let mut inner = tx.begin().await?;
                        part(ground, 2).execute(&mut *inner).await?;
                        inner.commit().await?;
                        tx.commit().await
                    };
                    let done = poll_then_drop(work, polls).await.transpose().expect("committed").is_some();
                    drop(conn);
                    done
                }
                .boxed()
            }),
        ])
        .await;
}

/// Stores both parts.
async fn copy_in(raw: &mut PgConnection, run: i32) {
    let mut copy = raw.copy_in_raw("copy done from stdin").await.expect("begun");
    for part in [1, 2] {
        copy.send(format!("{run}\t{part}\n").into_bytes()).await.expect("sent");
    }
    copy.finish().await.expect("finished");
}

async fn copy_out(raw: &mut PgConnection) {
    let rows =
        raw.copy_out_raw("copy (select n from generate_series(1, 20) n) to stdout").await.expect("begun");
    rows.try_for_each(|_| tokio::task::yield_now().map(Ok)).await.expect("rows");
}

#[db_testkit::test]
async fn hundreds_of_statements_abandoned_while_they_are_prepared_leave_few_behind(db: TestDb) {
    for reset in [Reset::Rollback, Reset::Keep] {
        let options = PoolOptions::api().max(1).acquire_timeout(PATIENCE).reset(reset);
        let pool = Pool::new(&config(&db), options);
        let left = async |conn: &mut Conn| -> i64 {
            sqlx::query_scalar("select count(*) from pg_prepared_statements")
                .persistent(false)
                .fetch_one(conn)
                .await
                .expect("a count")
        };
        let abandon = async |conn: &mut Conn, n: u32| {
            let sql = sqlx::AssertSqlSafe(format!("select {n}"));
            poll_then_drop(sqlx::query(sql).execute(conn), 1).await
        };

        // One abandoned statement for each checkout.
        for n in 0..400 {
            let mut conn = pool.handle().acquire().await.expect("a connection");
            abandon(&mut conn, n).await;
        }
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let by_checkouts = left(&mut conn).await;
        // Many in one checkout, inside and outside a transaction.
        for n in 400..800 {
            abandon(&mut conn, n).await;
            conn.ping().await.expect("the statement has ended");
        }
        let in_one_checkout = left(&mut conn).await;
        drop(conn);
        for round in 0..8 {
            let mut tx = pool.handle().begin().await.expect("begun");
            for n in 0..50 {
                let sql = sqlx::AssertSqlSafe(format!("select {round}, {n}"));
                poll_then_drop(sqlx::query(sql).execute(&mut tx), 1).await;
                sqlx::query("select 1").execute(&mut tx).await.expect("the statement has ended");
            }
            tx.commit().await.expect("committed");
        }
        let in_transactions = left(&mut pool.handle().acquire().await.expect("a connection")).await;

        println!("{by_checkouts} {in_one_checkout} {in_transactions} left of 400");
        // The driver caches the hundred statements whose answer had arrived at the first poll. Of the others, fifty are left, and those of
        // one transaction, which are forgotten after it.
        assert!(
            by_checkouts <= 150 && in_one_checkout <= 150 && in_transactions <= 200,
            "{by_checkouts} {in_one_checkout} {in_transactions}"
        );
        let totals = pool.stats().totals;
        assert!(
            totals.repair_failed == 0 && totals.closed.of(CloseReason::Lost) == 0,
            "no connection was discarded: {totals:?}"
        );
    }
}

#[db_testkit::test]
async fn a_transaction_after_a_dropped_statement_agrees_with_the_server(db: TestDb) {
    let ground = Ground::new(db).await;
    sqlx::query("create table one (n int primary key)").execute(&ground.db.pool()).await.expect("a table");
    let pool = &ground.pool;
    for polls in 0..8 {
        let mut tx = pool.handle().begin().await.expect("begun");
        sqlx::query("insert into one values (1)").execute(&mut tx).await.expect("stored");
        let twice = poll_then_drop(sqlx::query("insert into one values (1)").execute(&mut tx), polls).await;
        let committed = tx.commit().await;

        // The second insert never arrived, or it failed. A successful commit that stores nothing must not happen.
        let rows: i64 = sqlx::query_scalar("select count(*) from one")
            .fetch_one(&ground.db.pool())
            .await
            .expect("a count");
        assert_eq!(rows, i64::from(committed.is_ok()), "{polls} polls, {twice:?}, {committed:?}");
        sqlx::query("delete from one").execute(&ground.db.pool()).await.expect("deleted");
    }
}

#[db_testkit::test]
async fn after_a_dropped_close_a_pool_refuses_callers_and_can_be_closed_again(db: TestDb) {
    for polls in 1..4 {
        let pool = patient_pool(&db, 2);
        let held = pool.handle().acquire().await.expect("a connection");
        let closed = poll_then_drop(pool.close(PATIENCE), polls.min(1)).await;
        assert!(closed.is_none(), "a connection is in use");

        assert!(pool.handle().acquire().await.expect_err("closed").is_closed());
        drop(held);
        assert!(pool.close(PATIENCE).await.is_clean());
    }
}

#[db_testkit::test]
async fn a_stream_dropped_in_the_middle_frees_its_slot_at_once(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let mut rows = sqlx::query("select n, pg_sleep(0.001 * (n / 1000)) from generate_series(1, 1000000) n")
        .fetch(&mut conn);
    rows.try_next().await.expect("a row");
    drop(rows);
    drop(conn);

    let next = tokio::time::timeout(Duration::from_secs(5), pool.handle().acquire()).await;

    assert!(next.expect("a free slot").is_ok());
}

#[db_testkit::test]
async fn a_dropped_statement_is_cancelled_on_the_server(db: TestDb) {
    let pool = patient_pool(&db, 1);
    for _ in 0..20 {
        let mut sleeper = Box::pin(sqlx::query("select pg_sleep(600)").execute(pool.handle()));
        let running =
            async |sessions: &[db_testkit::Session]| sessions.iter().any(db_testkit::Session::is_sleeping);
        tokio::select! {
            _ = &mut sleeper => panic!("the statement sleeps for ten minutes"),
            () = until("the statement runs", async || running(&db.sessions().await.expect("sessions")).await) => {}
        }
        drop(sleeper);

        until("the statement is cancelled", async || !running(&db.sessions().await.expect("sessions")).await)
            .await;
    }
    // The server cancels before it answers.
    until("the last cancel is counted", async || pool.stats().totals.repaired == 20).await;
    let totals = pool.stats().totals;
    assert_eq!((totals.cancelled, totals.repair_failed), (20, 0), "{totals:?}");
}

#[db_testkit::test]
async fn ten_thousand_dropped_statements_cancel_no_other_and_pile_up_no_sessions(db: TestDb) {
    const DROPPERS: u32 = 6;
    const OTHERS: u32 = 4;
    let options = PoolOptions::api().name("test").max(8).acquire_timeout(PATIENCE);
    let pool = Pool::new(&config(&db), options);
    let over = Arc::new(AtomicBool::new(false));
    let dropped = Arc::new(AtomicU32::new(0));

    let droppers = (0..DROPPERS).map(|_| {
        let (pool, dropped) = (pool.clone(), Arc::clone(&dropped));
        tokio::spawn(async move {
            while dropped.fetch_add(1, Ordering::Relaxed) < 10_000 {
                let mut conn = pool.handle().acquire().await.expect("a connection");
                let statement = sqlx::query("select pg_sleep(60)").execute(&mut conn);
                // Some statements are dropped before they are sent, most while they run.
                let patience = Duration::from_micros(fastrand::u64(0..4_000));
                assert!(tokio::time::timeout(patience, statement).await.is_err());
            }
        })
    });
    let droppers: Vec<_> = droppers.collect();
    let others = (0..OTHERS).map(|_| {
        let (pool, over) = (pool.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            let mut done = 0u32;
            while !over.load(Ordering::Relaxed) {
                let number = fastrand::i32(..);
                // Long enough for a misdirected cancel to hit, short enough for many runs.
                let sleep = f64::from(fastrand::u32(0..4)) / 1000.0;
                let answer: Result<i32, _> =
                    sqlx::query_scalar("select $1::int from (select pg_sleep($2)) s")
                        .bind(number)
                        .bind(sleep)
                        .fetch_one(pool.handle())
                        .await;
                assert_eq!(answer.map_err(Error::from).unwrap_or_else(|error| panic!("{error}")), number);
                done += 1;
            }
            done
        })
    });
    let others: Vec<_> = others.collect();
    // The server does not confirm a graceful close, so a session closed within the last second may still be visible.
    let closed = || {
        let stats = pool.stats();
        stats.totals.dialled - u64::from(stats.open)
    };
    let samples = Mutex::new(Vec::new());
    tokio::select! {
        ended = join_all(droppers) => for ended in ended { ended.expect("a dropper") },
        () = async {
            loop {
                let sessions = db.sessions().await.expect("sessions").len() as u64;
                samples.lock().expect("not poisoned").push((Instant::now(), sessions, closed()));
            }
        } => {}
    }
    let samples = samples.into_inner().expect("not poisoned");
    let max = samples.iter().map(|(_, sessions, _)| *sessions).max().unwrap_or_default();
    for (at, sessions, closed) in &samples {
        let before = samples.iter().rfind(|(then, ..)| *at - *then > Duration::from_secs(1));
        let just_closed = closed - before.map_or(0, |(.., closed)| *closed);
        let limit = u64::from(pool.max_sessions()) + just_closed;
        assert!(*sessions <= limit, "{sessions} sessions, {just_closed} just closed, {:?}", pool.stats());
    }
    over.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for other in others {
        answered += other.await.expect("no other statement was cancelled");
    }

    let stats = pool.stats();
    assert!(answered > 1_000, "{answered}");
    assert!(stats.totals.cancelled > 5_000 && stats.totals.repair_failed == 0, "{stats:?}");
    assert!(max > 8, "{max} sessions, {stats:?}");
    until("all connections are returned", async || {
        let stats = pool.stats();
        stats.in_use == 0 && stats.repairing == 0 && stats.open <= 8
    })
    .await;
}

#[db_testkit::test]
async fn a_stream_holds_its_connection_until_it_is_dropped(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let mut rows = sqlx::query("select n from generate_series(1, 10) n").fetch(pool.handle());
    rows.next().await.expect("a row").expect("no error");
    assert_eq!(pool.stats().in_use, 1);

    drop(rows);

    assert_eq!(pool.stats().in_use, 0);
}
