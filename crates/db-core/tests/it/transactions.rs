//! The ends of transactions.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{Class, CloseReason, Error, Isolation, Pool, PoolOptions, TxOptions};
use db_testkit::{TestDb, poll_then_drop, until};
use futures_util::FutureExt;

use crate::support::{config, patient_pool, pool};

async fn table(db: &TestDb) -> Pool {
    let pool = pool(db, 2);
    sqlx::query("create table t (n int primary key)").execute(pool.handle()).await.expect("a table");
    pool
}

async fn count(pool: &Pool) -> i64 {
    sqlx::query_scalar("select count(*) from t").fetch_one(pool.handle()).await.expect("a count")
}

#[derive(Debug, PartialEq)]
struct Refused;

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

#[db_testkit::test]
async fn ok_commits_and_err_rolls_back(db: TestDb) {
    let pool = table(&db).await;

    let value = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            Ok::<_, Error>("done")
        })
        .await;
    assert_eq!(value.expect("committed"), "done");
    assert_eq!(count(&pool).await, 1);

    let refused = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (2)").execute(&mut *tx).await.map_err(Error::from)?;
            Err::<(), _>(Refused)
        })
        .await;
    assert_eq!(refused, Err(Refused), "the error is the closure's own");
    assert_eq!(count(&pool).await, 1);
}

#[db_testkit::test]
async fn a_panic_rolls_back(db: TestDb) {
    let pool = table(&db).await;

    let work = pool.handle().tx(async |tx| {
        sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
        assert!(count(&pool).await == 1, "panics, since other sessions do not see the row");
        Ok::<_, Error>(())
    });
    assert!(AssertUnwindSafe(work).catch_unwind().await.is_err());

    db.until_quiet().await;
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_commit_after_a_failed_statement_is_an_error(db: TestDb) {
    let pool = table(&db).await;

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            let twice = sqlx::query("insert into t values (1)").execute(&mut *tx).await;
            assert!(twice.is_err(), "a duplicate");
            Ok::<_, Error>(())
        })
        .await;

    assert!(matches!(result, Err(Error::Aborted)), "{result:?}");
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_failure_during_a_loan_is_found_before_the_commit(db: TestDb) {
    let pool = table(&db).await;
    let mut tx = pool.handle().begin().await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    let unseen = sqlx::query("select 1 / 0").execute(tx.as_sqlx().await.expect("lent")).await;
    assert!(unseen.is_err(), "a division by zero");

    let result = tx.commit().await;

    assert!(matches!(result, Err(Error::Aborted)), "{result:?}");
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_raw_savepoint_recovers_a_failed_transaction(db: TestDb) {
    let pool = table(&db).await;

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            sqlx::query("savepoint a").execute(&mut *tx).await?;
            let twice = sqlx::query("insert into t values (1)").execute(&mut *tx).await;
            assert!(twice.is_err(), "a duplicate");
            sqlx::query("rollback to savepoint a").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    assert!(result.is_ok(), "{result:?}");
    assert_eq!(count(&pool).await, 1);
}

#[db_testkit::test]
async fn a_raw_savepoint_may_be_rolled_back_past_one_of_ours(db: TestDb) {
    let pool = table(&db).await;
    let insert = |n: i32| sqlx::query("insert into t values ($1)").bind(n);

    let mut tx = pool.handle().begin().await.expect("begun");
    for end in ["rollback to savepoint a", "release savepoint a"] {
        sqlx::query("savepoint a").execute(&mut tx).await.expect("a raw savepoint");
        let part = tx.savepoint().await.expect("a savepoint inside the raw one");
        part.release().await.expect("released");
        sqlx::query(end).execute(&mut tx).await.expect("ended");
        let part = tx.savepoint().await.expect("a savepoint after the raw one");
        part.release().await.expect("released");
    }
    for end in ["rollback to savepoint a", "release savepoint a"] {
        let lent = tx.as_sqlx_without_reset().await.expect("lent");
        sqlx::raw_sql("savepoint a").execute(lent).await.expect("a raw savepoint");
        let part = tx.savepoint().await.expect("a savepoint inside the raw one");
        part.release().await.expect("released");
        let lent = tx.as_sqlx_without_reset().await.expect("lent");
        sqlx::raw_sql(end).execute(lent).await.expect("ended");
        let mut part = tx.savepoint().await.expect("a savepoint after the raw one");
        insert(if end.starts_with("release") { 1 } else { 2 }).execute(&mut part).await.expect("inserted");
        part.release().await.expect("released");
    }
    tx.commit().await.expect("committed");

    assert_eq!(count(&pool).await, 2);
}

#[db_testkit::test]
async fn a_commit_that_the_server_refuses_has_a_known_outcome(db: TestDb) {
    let pool = table(&db).await;
    sqlx::raw_sql("create table child (n int references t deferrable initially deferred)")
        .execute(&db.pool())
        .await
        .expect("a table");

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into child values (7)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    let error = result.expect_err("a child without a parent");
    assert_eq!(error.sqlstate().as_deref(), Some("23503"), "{error}");
    assert_eq!(error.constraint(), Some("child_n_fkey"));
    assert_eq!(count(&pool).await, 0, "the connection still works");
}

#[db_testkit::test]
async fn a_link_lost_during_commit_leaves_the_outcome_unknown(db: TestDb) {
    let pool = table(&db).await;
    let tx = pool.handle().begin().await.expect("begun");
    let pid = tx.pid();
    sqlx::query("select pg_terminate_backend($1, 5000)").bind(pid).execute(&db.pool()).await.expect("killed");

    let error = tx.commit().await.expect_err("the session is gone");

    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
}

#[db_testkit::test]
async fn errors_answer_questions_and_show_no_values(db: TestDb) {
    let pool = table(&db).await;
    let insert = || sqlx::query("insert into t values (4711)").execute(pool.handle());
    insert().await.expect("the first row");

    let duplicate = Error::from(insert().await.expect_err("a duplicate"));
    assert!(duplicate.is_unique_violation() && !duplicate.is_transient());
    assert_eq!(duplicate.constraint(), Some("t_pkey"));

    let missing: Result<i32, _> =
        sqlx::query_scalar("select n from t where n = 0").fetch_one(pool.handle()).await;
    assert!(Error::from(missing.expect_err("no row")).is_not_found());

    let value = sqlx::query("select ($1::text)::int").bind("hunter2").execute(pool.handle()).await;
    let value = Error::from(value.expect_err("no number"));
    assert_eq!(value.sqlstate().as_deref(), Some("22P02"));
    for text in [format!("{duplicate} {duplicate:?}"), format!("{value} {value:?}")] {
        assert!(!text.contains("hunter2") && !text.contains("4711") && !text.contains("line"), "{text}");
    }
}

async fn shown(tx: &mut db_core::Tx, setting: &str) -> String {
    sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(tx).await.expect(setting)
}

#[db_testkit::test]
async fn a_transaction_has_its_options_and_leaves_no_setting_behind(db: TestDb) {
    let pool = pool(&db, 1);
    let defaults = {
        let mut tx = pool.handle().begin().await.expect("begun");
        [shown(&mut tx, "statement_timeout").await, shown(&mut tx, "lock_timeout").await]
    };
    for (isolation, name) in [
        (Isolation::ReadCommitted, "read committed"),
        (Isolation::RepeatableRead, "repeatable read"),
        (Isolation::Serializable, "serializable"),
    ] {
        let options = TxOptions::default()
            .isolation(isolation)
            .read_only()
            .deferrable()
            .statement_timeout(Duration::from_millis(1234))
            .lock_timeout(Duration::from_secs(2))
            .role("pg_monitor")
            .tenant("o'hara \\ co")
            .set("app.shop", "b");
        let mut tx = pool.handle().begin_with(options).await.expect("begun");
        for (setting, value) in [
            ("transaction_isolation", name),
            ("transaction_read_only", "on"),
            ("transaction_deferrable", "on"),
            ("statement_timeout", "1234ms"),
            ("lock_timeout", "2s"),
            ("role", "pg_monitor"),
            ("app.tenant", "o'hara \\ co"),
            ("app.shop", "b"),
        ] {
            assert_eq!(shown(&mut tx, setting).await, value, "{setting}");
        }
        let write = sqlx::query("create table t (n int)").execute(&mut tx).await.expect_err("read only");
        assert_eq!(Error::from(write).sqlstate().as_deref(), Some("25006"));
        tx.rollback().await.expect("rolled back");
    }

    let mut tx = pool.handle().begin().await.expect("begun");
    assert_eq!(shown(&mut tx, "transaction_isolation").await, "read committed");
    assert_eq!(shown(&mut tx, "transaction_read_only").await, "off");
    assert_eq!(shown(&mut tx, "role").await, "none");
    assert_eq!(shown(&mut tx, "app.tenant").await, "");
    assert_eq!([shown(&mut tx, "statement_timeout").await, shown(&mut tx, "lock_timeout").await], defaults);
    assert_eq!(pool.stats().totals.repaired, 1, "only the dropped transaction needed a repair");
}

#[db_testkit::test]
async fn a_refused_setting_leaves_no_transaction_open(db: TestDb) {
    let pool = pool(&db, 1);

    let options = TxOptions::default().role("nobody of that name");
    let error = pool.handle().begin_with(options).await.expect_err("no such role");

    assert_eq!(error.sqlstate().as_deref(), Some("22023"), "{error}");
    db.until_quiet().await;
    assert_eq!(
        sqlx::query_scalar::<_, i32>("select 1").fetch_one(pool.handle()).await.expect("an answer"),
        1
    );
}

#[db_testkit::test]
async fn a_savepoint_is_kept_or_undone_alone(db: TestDb) {
    let pool = table(&db).await;
    let insert = |n: i32| sqlx::query("insert into t values ($1)").bind(n);

    let mut tx = pool.handle().begin().await.expect("begun");
    insert(1).execute(&mut tx).await.expect("inserted");
    let mut kept = tx.savepoint().await.expect("a savepoint");
    insert(2).execute(&mut kept).await.expect("inserted");
    let mut inner = kept.savepoint().await.expect("an inner savepoint");
    insert(3).execute(&mut inner).await.expect("inserted");
    inner.rollback().await.expect("undone");
    kept.release().await.expect("kept");
    let mut dropped = tx.savepoint().await.expect("a savepoint");
    insert(4).execute(&mut dropped).await.expect("inserted");
    insert(4).execute(&mut dropped).await.expect_err("a duplicate");
    drop(dropped);
    insert(5).execute(&mut tx).await.expect("the transaction continues");
    tx.commit().await.expect("committed");

    let rows: Vec<i32> =
        sqlx::query_scalar("select n from t order by n").fetch_all(pool.handle()).await.expect("rows");
    assert_eq!(rows, [1, 2, 5]);
}

#[db_testkit::test]
async fn a_dropped_savepoint_is_undone_before_a_commit(db: TestDb) {
    let pool = table(&db).await;

    let mut tx = pool.handle().begin().await.expect("begun");
    let mut outer = tx.savepoint().await.expect("a savepoint");
    let mut inner = outer.savepoint().await.expect("an inner savepoint");
    sqlx::query("insert into t values (1)").execute(&mut inner).await.expect("inserted");
    inner.release().await.expect("released into the outer savepoint");
    drop(outer);
    tx.commit().await.expect("committed");

    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_nested_closure_is_undone_on_err_and_the_transaction_continues(db: TestDb) {
    let pool = table(&db).await;

    let done = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            for _ in 0..2 {
                let nested = tx
                    .nested(async |part| {
                        sqlx::query("insert into t values (2)").execute(&mut *part).await?;
                        sqlx::query("insert into t values (1)").execute(&mut *part).await?;
                        Ok::<_, Error>(())
                    })
                    .await;
                assert!(nested.expect_err("a duplicate").is_unique_violation());
            }
            tx.nested(async |part| {
                Ok::<_, Error>(sqlx::query("insert into t values (3)").execute(part).await?)
            })
            .await
        })
        .await;

    done.expect("committed");
    let rows: Vec<i32> =
        sqlx::query_scalar("select n from t order by n").fetch_all(pool.handle()).await.expect("rows");
    assert_eq!(rows, [1, 3]);
}

/// A hook that counts its run.
fn tick(ticks: &Arc<AtomicU32>) -> impl FnOnce() + Send + 'static {
    let ticks = Arc::clone(ticks);
    move || {
        ticks.fetch_add(1, Ordering::Relaxed);
    }
}

#[db_testkit::test]
async fn after_commit_hooks_run_after_a_commit_only(db: TestDb) {
    let pool = table(&db).await;
    let ticks = Arc::new(AtomicU32::new(0));
    let ticked = || ticks.load(Ordering::Relaxed);

    let mut tx = pool.handle().begin().await.expect("begun");
    tx.after_commit(tick(&ticks));
    tx.after_commit(tick(&ticks));
    assert_eq!(ticked(), 0, "not before the commit");
    tx.commit().await.expect("committed");
    assert_eq!(ticked(), 2, "after");

    let mut tx = pool.handle().begin().await.expect("begun");
    tx.after_commit(tick(&ticks));
    tx.rollback().await.expect("rolled back");
    let mut tx = pool.handle().begin().await.expect("begun");
    tx.after_commit(tick(&ticks));
    sqlx::query("select 1 / 0").execute(&mut tx).await.expect_err("a division by zero");
    tx.commit().await.expect_err("aborted");
    let mut tx = pool.handle().begin().await.expect("begun");
    tx.after_commit(tick(&ticks));
    drop(tx);
    let mut tx = pool.handle().begin().await.expect("begun");
    tx.after_commit(tick(&ticks));
    sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(tx.pid())
        .execute(&db.pool())
        .await
        .expect("killed");
    assert!(matches!(tx.commit().await, Err(Error::CommitUnknown(_))));
    assert_eq!(ticked(), 2, "rolled back, aborted, dropped, unknown");
}

#[db_testkit::test]
async fn a_hook_is_dropped_with_its_savepoint(db: TestDb) {
    let pool = table(&db).await;
    let (kept, undone) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));

    let mut tx = pool.handle().begin().await.expect("begun");
    for (ticks, keep) in [(&kept, true), (&undone, false)] {
        let hook = tick(ticks);
        let nested = tx.nested(async move |part| {
            part.after_commit(hook);
            if keep { Ok(()) } else { Err(Error::Aborted) }
        });
        assert_eq!(nested.await.is_ok(), keep);
    }
    tx.commit().await.expect("committed");

    assert_eq!((kept.load(Ordering::Relaxed), undone.load(Ordering::Relaxed)), (1, 0));
}

#[db_testkit::test]
async fn resolve_commit_works_for_a_transaction_without_writes(db: TestDb) {
    let pool = pool(&db, 1);
    let mut tx = pool.handle().begin_with(TxOptions::default().resolve_commit()).await.expect("begun");
    sqlx::query("select 1").execute(&mut tx).await.expect("read");
    sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(tx.pid())
        .execute(&db.pool())
        .await
        .expect("killed");

    // The number could not be queried, so the commit was not sent, and its outcome is known.
    let error = tx.commit().await.expect_err("the session is gone");
    assert!(matches!(error, Error::Statement(_)), "{error:?}");

    let mut tx = pool.handle().begin_with(TxOptions::default().resolve_commit()).await.expect("begun");
    sqlx::query("select 1").execute(&mut tx).await.expect("read");
    tx.commit().await.expect("a commit without writes");
}

#[db_testkit::test]
async fn a_savepoint_dropped_before_its_answer_is_not_confused_with_a_later_one(db: TestDb) {
    let pool = table(&db).await;
    let insert = |n: i32| sqlx::query("insert into t values ($1)").bind(n);
    for begun in 0..6 {
        for released in 0..6 {
            let mut tx = pool.handle().begin().await.expect("begun");
            drop(poll_then_drop(tx.savepoint(), begun).await);
            insert(1).execute(&mut tx).await.expect("inserted");
            let mut second = tx.savepoint().await.expect("a savepoint");
            insert(2).execute(&mut second).await.expect("inserted");
            drop(poll_then_drop(second.release(), released).await);
            let went_on = insert(3).execute(&mut tx).await.is_ok();
            let committed = tx.commit().await.is_ok();

            assert_eq!(went_on, committed, "{begun} {released}");
            let rows: Vec<i32> =
                sqlx::query_scalar("delete from t returning n").fetch_all(pool.handle()).await.expect("rows");
            assert_eq!(rows.contains(&1), committed, "{begun} {released}: {rows:?}");
        }
    }
}

#[db_testkit::test]
async fn the_error_of_a_dropped_statement_does_not_fail_the_next_transaction(db: TestDb) {
    let pool = table(&db).await;
    for polls in 0..6 {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        drop(
            poll_then_drop(
                sqlx::query("select 1 / (n - n) from generate_series(1, 2) n").execute(&mut conn),
                polls,
            )
            .await,
        );

        let mut tx = conn.begin().await.expect("begun");
        sqlx::query("insert into t values ($1)")
            .bind(i32::try_from(polls).expect("small"))
            .execute(&mut tx)
            .await
            .expect("inserted");
        tx.commit().await.expect("committed");
    }
    assert_eq!(count(&pool).await, 6);
}

#[db_testkit::test]
async fn a_statement_beyond_the_deadline_of_a_closure_is_cancelled_and_not_waited_for(db: TestDb) {
    let options = PoolOptions::api().max(1).statement_timeout(Duration::from_millis(300));
    let pool = Pool::new(&config(&db), options);
    let begun = std::time::Instant::now();

    let result = pool
        .handle()
        .tx(async |tx| {
            sqlx::query("select pg_sleep(600)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    assert!(matches!(result, Err(Error::Deadline(_))), "{result:?}");
    db.until_quiet().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // The repair rolled back: a rollback by the caller would have returned a clean connection.
    until("the connection is repaired", async || pool.stats().totals.repaired == 1).await;
    assert_eq!(pool.stats().totals.cancelled, 1);
}

#[db_testkit::test]
async fn a_transactions_own_timeout_replaces_that_of_the_pool(db: TestDb) {
    let pool = pool(&db, 1);

    let result = pool
        .handle()
        .tx_with(TxOptions::default().timeout(Duration::from_millis(200)), async |tx| {
            sqlx::query("select pg_sleep(600)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    assert!(matches!(&result, Err(Error::Deadline(error)) if error.is_transaction()), "{result:?}");
    db.until_quiet().await;
}

#[db_testkit::test]
async fn a_transaction_ended_by_a_statement_inside_it_is_not_reported_as_committed(db: TestDb) {
    let pool = table(&db).await;
    for word in ["rollback", "commit"] {
        let mut tx = pool.handle().begin().await.expect("begun");
        sqlx::query("insert into t values (1) on conflict do nothing")
            .execute(&mut tx)
            .await
            .expect("inserted");
        sqlx::query(word).execute(&mut tx).await.expect("ended");

        let error = tx.commit().await.expect_err("no transaction is open");
        assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    }
}

#[db_testkit::test]
async fn a_fatal_error_loses_the_connection_whatever_its_code(db: TestDb) {
    let pool = patient_pool(&db, 1);
    for (ended, sql, code, class) in [
        (1, "select $1::int / 0", "22012", Class::Other),
        (2, "select $1::int, $2::int", "08P01", Class::Lost),
    ] {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let pid = conn.pid();
        // The server makes each error fatal, and the text does not show that.
        sqlx::query("select set_config('exit_on_error', 'on', false)").execute(&mut conn).await.expect("set");

        let error = sqlx::query(sql).bind(1).execute(&mut conn).await.expect_err("a fatal error");
        drop(conn);

        let error = Error::from(error);
        assert_eq!((error.sqlstate().as_deref(), error.class()), (Some(code), class), "{error}");
        assert_ne!(pool.handle().acquire().await.expect("another connection").pid(), pid, "{sql}");
        assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), ended, "{sql}");
    }
}

#[db_testkit::test]
async fn a_wrong_number_of_parameters_keeps_the_connection(db: TestDb) {
    let pool = pool(&db, 1);
    let first = pool.handle().acquire().await.expect("a connection").pid();

    let error = sqlx::query("select $1::int, $2::int")
        .bind(1)
        .execute(pool.handle())
        .await
        .expect_err("a parameter is missing");

    let error = Error::from(error);
    assert_eq!(error.sqlstate().as_deref(), Some("08P01"), "{error}");
    assert!(!error.is_transient(), "{error}");
    assert_eq!(pool.handle().acquire().await.expect("a connection").pid(), first);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0);
}
