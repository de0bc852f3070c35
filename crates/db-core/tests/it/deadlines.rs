//! Deadlines of handles.

use std::time::{Duration, Instant};

use db_core::{AcquirePhase, Class, Error, Handle, Pool, TxOptions, TxRetry};
use db_testkit::{TestDb, until};
use futures_util::{FutureExt, TryStreamExt};

use crate::support::{PATIENCE, patient_pool, take};

/// Long enough for what is done before it on a busy machine, and short against [`PATIENCE`].
const SOON: Duration = Duration::from_millis(500);

fn soon(pool: &Pool) -> Handle {
    pool.handle().deadline(Instant::now() + SOON)
}

/// A pool of one connection, which is open.
async fn warm(db: &TestDb) -> Pool {
    let pool = patient_pool(db, 1);
    drop(take(&pool, 1).await);
    pool
}

fn over(pool: &Pool) -> Handle {
    pool.handle().deadline(Instant::now())
}

#[track_caller]
fn is_callers(error: impl Into<Error>) -> bool {
    let error = error.into();
    assert_eq!(error.class(), Class::TimedOut, "{error}");
    match &error {
        Error::Deadline(error) => error.is_callers() && !error.is_transaction(),
        Error::Acquire(error) => error.is_past_deadline(),
        other => panic!("{other}"),
    }
}

async fn until_nothing_runs(db: &TestDb, pool: &Pool) {
    db.until_sessions("no statement runs", |all| all.iter().all(|session| session.state != "active")).await;
    until("the connection is idle", async || (pool.stats().in_use, pool.stats().repairing) == (0, 0)).await;
}

#[db_testkit::test]
async fn a_statement_ends_at_the_deadline_and_is_cancelled_on_the_server(db: TestDb) {
    let pool = warm(&db).await;

    let error = sqlx::query("select pg_sleep(60)").execute(soon(&pool)).await.expect_err("too long");

    let error = Error::from(error);
    assert_eq!(
        error.to_string().split(" (acquire").next(),
        Some("pool `test`: the caller's deadline has passed; what is not done is cancelled and rolled back")
    );
    assert!(is_callers(error));
    until_nothing_runs(&db, &pool).await;
    assert_eq!(pool.stats().totals.cancelled, 1);
}

#[db_testkit::test]
async fn a_stream_a_transaction_and_a_copy_end_at_the_deadline(db: TestDb) {
    let pool = warm(&db).await;
    sqlx::query("create table word (t text)").execute(pool.handle()).await.expect("a table");

    let handle = soon(&pool);
    let slow = "select n, pg_sleep(n * 60) from generate_series(0, 1) n";
    let mut rows = 0;
    let mut stream = sqlx::Executor::fetch(&handle, slow);
    let error = loop {
        match stream.try_next().await {
            Ok(Some(_)) => rows += 1,
            Ok(None) => panic!("the second row takes a minute"),
            Err(error) => break error,
        }
    };
    drop(stream);
    assert!(is_callers(error) && rows <= 1);
    until_nothing_runs(&db, &pool).await;

    let waits = soon(&pool).tx(async |tx| {
        sqlx::query("insert into word values ('tx')").execute(&mut *tx).await?;
        std::future::pending::<Result<(), Error>>().await
    });
    assert!(is_callers(waits.await.expect_err("too long")));
    until_nothing_runs(&db, &pool).await;

    let mut copy = soon(&pool).copy_in("copy word from stdin").await.expect("begun");
    copy.send("copied\n".as_bytes().to_vec()).await.expect("sent");
    tokio::time::sleep(SOON).await;
    let error = match copy.send("too late\n".as_bytes().to_vec()).await {
        Ok(()) => copy.finish().await.expect_err("too late"),
        Err(error) => error,
    };
    assert!(is_callers(error));

    until_nothing_runs(&db, &pool).await;
    let words: i64 =
        sqlx::query_scalar("select count(*) from word").fetch_one(pool.handle()).await.expect("a count");
    assert_eq!(words, 0);
}

#[db_testkit::test]
async fn nothing_is_sent_after_the_deadline(db: TestDb) {
    let pool = warm(&db).await;
    sqlx::query("create sequence used").execute(pool.handle()).await.expect("a sequence");
    let handle = soon(&pool);
    let mut kept = handle.begin().await.expect("a transaction");
    sqlx::query("select nextval('used')").execute(&mut *kept).await.expect("in time");
    tokio::time::sleep(SOON).await;

    let use_it = "select nextval('used')";
    assert!(is_callers(sqlx::query(use_it).execute(&mut *kept).await.expect_err("too late")));
    assert!(is_callers(sqlx::query(use_it).fetch_optional(&mut *kept).await.expect_err("too late")));
    assert!(is_callers(sqlx::query(use_it).fetch_all(&mut *kept).await.expect_err("too late")));
    assert!(is_callers(kept.ping().await.expect_err("too late")));
    assert!(is_callers(kept.savepoint().await.map(drop).expect_err("too late")));
    assert!(is_callers(kept.copy_out("copy (select 1) to stdout").try_next().await.expect_err("too late")));
    assert!(is_callers(kept.commit().await.expect_err("too late, and nothing is stored")));
    assert!(is_callers(sqlx::query(use_it).execute(&handle).await.expect_err("too late")));
    assert!(is_callers(handle.begin().await.expect_err("too late")));
    assert!(handle.try_acquire().await.is_none(), "although a connection is idle");
    assert!(is_callers(handle.copy_in("copy used from stdin").await.map(drop).expect_err("too late")));

    until_nothing_runs(&db, &pool).await;
    let totals = pool.stats().totals;
    assert_eq!((totals.cancelled, totals.dialled), (0, 1), "nothing ran that had to be cancelled or cut off");
    let next: i64 = sqlx::query_scalar(use_it).fetch_one(pool.handle()).await.expect("a number");
    assert_eq!(next, 2, "it was used once before the deadline");
}

#[db_testkit::test]
async fn the_wait_for_a_connection_ends_at_the_deadline(db: TestDb) {
    let pool = warm(&db).await;
    let held = take(&pool, 1).await;

    let error = soon(&pool).acquire().await.expect_err("nobody gives one back");

    assert_eq!(error.phase(), AcquirePhase::Queue);
    assert!(error.to_string().contains("; the caller's deadline has passed"), "{error}");
    assert!(error.waited() < PATIENCE);
    assert!(is_callers(error));
    drop(held);
    let at_once = over(&pool).acquire().now_or_never().expect("an answer at once");
    let error = Error::from(at_once.map(drop).expect_err("although a connection is idle"));
    assert!(
        error.to_string().starts_with("pool `test`: nothing was tried: the caller's deadline had passed"),
        "{error}"
    );
    assert!(!error.is_transient() && error.retry_after().is_none(), "a repetition would be late, too");
    assert!(is_callers(error));
    let totals = pool.stats().totals;
    assert_eq!((totals.timed_out, totals.past_deadline), (0, 2), "no sign of a pool that is too small");
    let other = pool.handle().acquire_timeout(Duration::ZERO).deadline(Instant::now() + PATIENCE);
    let _held = take(&pool, 1).await;
    let error = other.acquire().await.expect_err("the acquire timeout holds beside it");
    assert!(!error.is_past_deadline(), "{error}");
}

#[db_testkit::test]
async fn the_earliest_limit_counts(db: TestDb) {
    let pool = warm(&db).await;
    let late = Instant::now() + PATIENCE;

    let twice = pool.handle().deadline(Instant::now() + SOON).deadline(late);
    assert!(is_callers(
        sqlx::query("select pg_sleep(60)").execute(twice).await.expect_err("the earlier one")
    ));

    let options = || TxOptions::default().timeout(SOON);
    let waits = pool
        .handle()
        .deadline(late)
        .tx_with(options(), async |_| std::future::pending::<Result<(), Error>>().await);
    let Err(Error::Deadline(error)) = waits.await else { panic!("it ends") };
    assert!(error.is_transaction() && !error.is_callers());
}

#[db_testkit::test]
async fn a_commit_that_was_sent_is_waited_for(db: TestDb) {
    let pool = warm(&db).await;
    let slow_commit = "create table word (t text);
         create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(1); return null; end';
         create constraint trigger slow after insert on word deferrable initially deferred
           for each row execute function slow()";
    sqlx::raw_sql(slow_commit).execute(pool.handle()).await.expect("a table");

    let handle = soon(&pool);
    let stored = handle
        .tx(async |tx| {
            sqlx::query("insert into word values ('stored')").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await;

    stored.expect("its outcome is known, although the deadline passed meanwhile");
    let words: i64 =
        sqlx::query_scalar("select count(*) from word").fetch_one(pool.handle()).await.expect("a count");
    assert_eq!(words, 1);
}

#[db_testkit::test]
async fn a_transaction_is_not_repeated_after_the_deadline(db: TestDb) {
    let pool = warm(&db).await;
    let policy = TxRetry::default().retries(1000).conflict_pause(SOON).max_pause(SOON);
    let mut runs = 0;
    let tried = soon(&pool).tx_retry(TxOptions::default(), policy, || {
        runs += 1;
        async |tx| {
            let fail = "do $$ begin raise exception using errcode = '40001'; end $$";
            sqlx::raw_sql(fail).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        }
    });

    let error = tried.await.expect_err("it conflicts each time");

    assert_eq!(error.class(), Class::Conflict, "the error that is known: {error}");
    assert_eq!((runs, pool.stats().totals.retries), (1, 0));
}
