//! How transactions end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{Class, Error, Isolation, Pool, PoolOptions, TxOptions};
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
        assert!(count(&pool).await == 1, "nobody else sees it: panics");
        Ok::<_, Error>(())
    });
    assert!(AssertUnwindSafe(work).catch_unwind().await.is_err());

    db.until_quiet().await;
    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_transaction_in_which_a_statement_failed_does_not_report_success(db: TestDb) {
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
async fn a_failure_that_we_did_not_see_is_found_before_the_commit(db: TestDb) {
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
async fn a_savepoint_of_ones_own_mends_a_failure(db: TestDb) {
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
async fn a_commit_that_the_server_refuses_is_a_definite_failure(db: TestDb) {
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
    assert_eq!(count(&pool).await, 0, "and the connection serves on");
}

#[db_testkit::test]
async fn a_link_lost_during_commit_is_said_to_leave_it_open(db: TestDb) {
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
    insert().await.expect("the first");

    let duplicate = Error::from(insert().await.expect_err("the second"));
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
async fn a_transaction_is_begun_as_it_was_asked_for_and_leaves_no_setting_behind(db: TestDb) {
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
    assert_eq!(pool.stats().totals.repaired, 1, "only the one that was dropped at the beginning");
}

#[db_testkit::test]
async fn a_setting_that_the_server_refuses_begins_nothing(db: TestDb) {
    let pool = pool(&db, 1);

    let options = TxOptions::default().role("nobody of that name");
    let error = pool.handle().begin_with(options).await.expect_err("no such role");

    assert_eq!(error.sqlstate().as_deref(), Some("22023"), "{error}");
    db.until_quiet().await;
    assert_eq!(
        sqlx::query_scalar::<_, i32>("select 1").fetch_one(pool.handle()).await.expect("serves on"),
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
    let mut inner = kept.savepoint().await.expect("a savepoint in it");
    insert(3).execute(&mut inner).await.expect("inserted");
    inner.rollback().await.expect("undone");
    kept.release().await.expect("kept");
    let mut dropped = tx.savepoint().await.expect("a savepoint");
    insert(4).execute(&mut dropped).await.expect("inserted");
    insert(4).execute(&mut dropped).await.expect_err("a duplicate");
    drop(dropped);
    insert(5).execute(&mut tx).await.expect("the transaction goes on");
    tx.commit().await.expect("committed");

    let rows: Vec<i32> =
        sqlx::query_scalar("select n from t order by n").fetch_all(pool.handle()).await.expect("rows");
    assert_eq!(rows, [1, 2, 5]);
}

#[db_testkit::test]
async fn a_dropped_savepoint_is_undone_even_when_the_commit_comes_next(db: TestDb) {
    let pool = table(&db).await;

    let mut tx = pool.handle().begin().await.expect("begun");
    let mut outer = tx.savepoint().await.expect("a savepoint");
    let mut inner = outer.savepoint().await.expect("a savepoint in it");
    sqlx::query("insert into t values (1)").execute(&mut inner).await.expect("inserted");
    inner.release().await.expect("kept by the outer one");
    drop(outer);
    tx.commit().await.expect("committed");

    assert_eq!(count(&pool).await, 0);
}

#[db_testkit::test]
async fn a_nested_closure_is_undone_on_err_and_the_transaction_goes_on(db: TestDb) {
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

/// Counts how often it is told to.
fn tick(ticks: &Arc<AtomicU32>) -> impl FnOnce() + Send + 'static {
    let ticks = Arc::clone(ticks);
    move || {
        ticks.fetch_add(1, Ordering::Relaxed);
    }
}

#[db_testkit::test]
async fn what_is_to_happen_after_the_commit_happens_after_a_commit_and_never_else(db: TestDb) {
    let pool = table(&db).await;
    let ticks = Arc::new(AtomicU32::new(0));
    let ticked = || ticks.load(Ordering::Relaxed);

    let mut tx = pool.handle().begin().await.expect("begun");
    tx.after_commit(tick(&ticks));
    tx.after_commit(tick(&ticks));
    assert_eq!(ticked(), 0, "not before");
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
async fn a_hook_goes_with_its_savepoint(db: TestDb) {
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
async fn a_commit_that_is_to_be_resolved_is_so_also_when_nothing_was_written(db: TestDb) {
    let pool = pool(&db, 1);
    let mut tx = pool.handle().begin_with(TxOptions::default().resolve_commit()).await.expect("begun");
    sqlx::query("select 1").execute(&mut tx).await.expect("read");
    sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(tx.pid())
        .execute(&db.pool())
        .await
        .expect("killed");

    // Before the commit was sent, so it is known that it was not: the number could not be asked for.
    let error = tx.commit().await.expect_err("the session is gone");
    assert!(matches!(error, Error::Statement(_)), "{error:?}");

    let mut tx = pool.handle().begin_with(TxOptions::default().resolve_commit()).await.expect("begun");
    sqlx::query("select 1").execute(&mut tx).await.expect("read");
    tx.commit().await.expect("nothing to lose");
}

#[db_testkit::test]
async fn savepoints_that_were_dropped_on_the_way_are_not_mistaken_for_later_ones(db: TestDb) {
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
async fn what_a_dropped_statement_failed_with_is_not_the_next_transactions_failure(db: TestDb) {
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
async fn a_statement_that_takes_too_long_in_a_closure_is_cancelled_and_not_waited_for(db: TestDb) {
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
    // By repair: a rollback that waited for it would have given the connection back as good as new.
    until("it is mended", async || pool.stats().totals.repaired == 1).await;
    assert_eq!(pool.stats().totals.cancelled, 1);
}

#[db_testkit::test]
async fn a_transaction_has_the_limit_that_it_was_given(db: TestDb) {
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
async fn a_transaction_that_was_ended_inside_is_not_reported_as_committed(db: TestDb) {
    let pool = table(&db).await;
    for word in ["rollback", "commit"] {
        let mut tx = pool.handle().begin().await.expect("begun");
        sqlx::query("insert into t values (1) on conflict do nothing")
            .execute(&mut tx)
            .await
            .expect("inserted");
        sqlx::query(word).execute(&mut tx).await.expect("ended");

        let error = tx.commit().await.expect_err("there is none");
        assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    }
}

#[db_testkit::test]
async fn an_error_that_ends_its_session_costs_the_connection_whatever_its_code(db: TestDb) {
    let pool = patient_pool(&db, 1);
    for (ended, sql, code, class) in [
        (1, "select $1::int / 0", "22012", Class::Other),
        (2, "select $1::int, $2::int", "08P01", Class::Lost),
    ] {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let pid = conn.pid();
        // The server makes each error a fatal one, and the text of this does not tell us.
        sqlx::query("select set_config('exit_on_error', 'on', false)").execute(&mut conn).await.expect("set");

        let error = sqlx::query(sql).bind(1).execute(&mut conn).await.expect_err("its last word");
        drop(conn);

        let error = Error::from(error);
        assert_eq!((error.sqlstate().as_deref(), error.class()), (Some(code), class), "{error}");
        assert_ne!(pool.handle().acquire().await.expect("another connection").pid(), pid, "{sql}");
        assert_eq!(pool.stats().totals.lost, ended, "{sql}");
    }
}

#[db_testkit::test]
async fn a_mistake_in_the_number_of_parameters_costs_no_connection(db: TestDb) {
    let pool = pool(&db, 1);
    let first = pool.handle().acquire().await.expect("a connection").pid();

    let error = sqlx::query("select $1::int, $2::int")
        .bind(1)
        .execute(pool.handle())
        .await
        .expect_err("one is missing");

    let error = Error::from(error);
    assert_eq!(error.sqlstate().as_deref(), Some("08P01"), "{error}");
    assert!(!error.is_transient(), "{error}");
    assert_eq!(pool.handle().acquire().await.expect("a connection").pid(), first);
    assert_eq!(pool.stats().totals.lost, 0);
}
