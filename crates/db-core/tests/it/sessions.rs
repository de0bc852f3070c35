//! Functions that take a `&mut Session`, and the state that a session keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use db_core::{Error, Pool, Session, Tx, TxOptions, TxRetry};
use db_testkit::{TestDb, poll_then_drop};

use crate::support::{patient_pool, pool, until_repaired};

async fn table(db: &TestDb) -> Pool {
    let pool = pool(db, 2);
    sqlx::query("create table t (n int primary key)").execute(pool.handle()).await.expect("a table");
    pool
}

/// The stored numbers, as another session sees them.
async fn stored(db: &TestDb) -> Vec<i32> {
    sqlx::query_scalar("select n from t order by n").fetch_all(&db.pool()).await.expect("numbers")
}

/// A repository function.
async fn add(db: &mut Session, n: i32) -> Result<(), Error> {
    sqlx::query("insert into t values ($1)").bind(n).execute(&mut *db).await?;
    Ok(())
}

/// A repository function that stores both rows or none.
async fn add_both(db: &mut Session, first: i32, second: i32) -> Result<(), Error> {
    db.nested(async |part| {
        add(part, first).await?;
        add(part, second).await
    })
    .await
}

fn counter() -> (Arc<AtomicU32>, impl Fn() + Clone + Send + 'static) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    (count, move || {
        counted.fetch_add(1, Ordering::SeqCst);
    })
}

#[db_testkit::test]
async fn a_function_on_a_session_runs_on_a_connection_a_transaction_a_savepoint_and_in_a_retry(db: TestDb) {
    let pool = table(&db).await;

    let work = {
        let pool = pool.clone();
        async move {
            let mut conn = pool.handle().acquire().await?;
            add(&mut conn, 1).await?;
            drop(conn);
            pool.handle()
                .tx(async |tx| {
                    add(tx, 2).await?;
                    tx.nested(async |part| {
                        add(part, 3).await?;
                        part.nested(async |inner| add(inner, 4).await).await
                    })
                    .await
                })
                .await?;
            pool.handle()
                .tx_retry(TxOptions::default(), TxRetry::default(), || async |tx| add(tx, 5).await)
                .await
        }
    };
    // The whole future can be spawned.
    tokio::spawn(work).await.expect("no panic").expect("added");

    assert_eq!(stored(&db).await, [1, 2, 3, 4, 5]);
}

#[db_testkit::test]
async fn nested_work_outside_a_transaction_is_a_transaction(db: TestDb) {
    let pool = table(&db).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");

    add_both(&mut conn, 1, 2).await.expect("both rows");
    assert_eq!(stored(&db).await, [1, 2], "committed, while the connection is held");
    let error = add_both(&mut conn, 3, 2).await.expect_err("a duplicate");
    assert!(error.is_unique_violation(), "{error}");
    assert_eq!(stored(&db).await, [1, 2]);
    add(&mut conn, 4).await.expect("the connection still works");
    assert_eq!(stored(&db).await, [1, 2, 4]);
    drop(conn);

    let mut tx = pool.handle().begin().await.expect("begun");
    add_both(&mut tx, 5, 6).await.expect("both rows");
    assert_eq!(stored(&db).await, [1, 2, 4], "not committed yet");
    tx.commit().await.expect("committed");
    assert_eq!(stored(&db).await, [1, 2, 4, 5, 6]);
    assert_eq!(pool.stats().totals.repaired, 0, "no repair");
}

#[db_testkit::test]
async fn dropped_nested_work_outside_a_transaction_is_undone_before_the_next_statement(db: TestDb) {
    let pool = table(&db).await;
    let (count, hook) = counter();
    for polls in 0.. {
        let mut conn = pool.handle().acquire().await.expect("a connection");
        let run = i32::try_from(polls).expect("few") * 10;
        let both = conn.nested(async |part| {
            let hook = hook.clone();
            part.after_commit(hook);
            add(part, run + 1).await?;
            add(part, run + 2).await
        });
        let done = poll_then_drop(both, polls).await;

        let (after, ran) = counter();
        conn.after_commit(ran);
        assert_eq!(after.load(Ordering::SeqCst), 1, "no transaction is open");
        add(&mut conn, run + 3).await.expect("the next statement");

        let stored = stored(&db).await;
        let of_run = |n: i32| stored.contains(&(run + n));
        assert!(of_run(3), "the next statement's row, after {polls} polls");
        assert_eq!(of_run(1), of_run(2), "both or none, after {polls} polls");
        assert_eq!(count.swap(0, Ordering::SeqCst) == 1, of_run(1), "the hook, after {polls} polls");
        if done.is_some() {
            assert!(of_run(1));
            break;
        }
    }
}

#[db_testkit::test]
async fn a_hook_outside_a_transaction_runs_at_once(db: TestDb) {
    let pool = table(&db).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let (count, hook) = counter();

    conn.after_commit(hook.clone());
    conn.unless_rolled_back(hook.clone());
    assert_eq!(count.load(Ordering::SeqCst), 2);

    let mut tx = conn.begin().await.expect("begun");
    tx.after_commit(hook.clone());
    assert_eq!(count.load(Ordering::SeqCst), 2, "not before the commit");
    let mut part = tx.savepoint().await.expect("a savepoint");
    part.after_commit(hook);
    part.rollback().await.expect("undone");
    tx.commit().await.expect("committed");
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[db_testkit::test]
async fn swapped_sessions_take_their_transactions_along(db: TestDb) {
    let pool = table(&db).await;
    let (count, hook) = counter();
    let mut one = pool.handle().begin().await.expect("begun");
    let mut other = pool.handle().begin().await.expect("begun");
    add(&mut one, 1).await.expect("added");
    one.after_commit(hook);
    add(&mut other, 2).await.expect("added");

    std::mem::swap::<Session>(&mut one, &mut other);
    other.commit().await.expect("committed");
    one.rollback().await.expect("rolled back");

    assert_eq!((stored(&db).await, count.load(Ordering::SeqCst)), (vec![1], 1));

    // A transaction whose session was swapped for one without a transaction has nothing to commit, and reports that.
    let mut tx = pool.handle().begin().await.expect("begun");
    add(&mut tx, 3).await.expect("added");
    let mut conn = pool.handle().acquire().await.expect("a connection");
    std::mem::swap::<Session>(&mut tx, &mut conn);
    let error = tx.commit().await.expect_err("no transaction");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    drop(conn);
    until_repaired(&pool).await;

    // A savepoint whose session was swapped belongs to no transaction here.
    let mut tx = pool.handle().begin().await.expect("begun");
    let mut other = pool.handle().begin().await.expect("begun");
    let mut part = tx.savepoint().await.expect("a savepoint");
    add(&mut part, 4).await.expect("added");
    std::mem::swap::<Session>(&mut part, &mut other);
    part.release().await.expect_err("the savepoint belongs to another session");
    other.rollback().await.expect("rolled back");
    tx.commit().await.expect("empty");
    assert_eq!(stored(&db).await, [1]);
}

#[db_testkit::test]
async fn a_pool_is_an_executor_without_a_call_site(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let handle = pool.handle();

    let one: i32 = sqlx::query_scalar("select 1").fetch_one(&pool).await.expect("an answer");
    let two: i32 = sqlx::query_scalar("select 2").fetch_one(&handle).await.expect("an answer");
    assert_eq!((one, two), (1, 2));

    let sleeping = sqlx::query("select pg_sleep(600)").execute(&pool);
    let holder = async {
        db_testkit::until("the connection is in use", async || !pool.holders().is_empty()).await;
        pool.holders().remove(0)
    };
    let holder = tokio::select! {
        _ = sleeping => unreachable!("the statement takes ten minutes"),
        holder = holder => holder,
    };
    assert_eq!(holder.at.location(), None);
    assert!(holder.to_string().starts_with("&Pool, whose call site is unknown for "), "{holder}");
}

#[db_testkit::test]
async fn acquire_and_begin_futures_can_be_spawned(db: TestDb) {
    let pool = table(&db).await;

    let acquired = tokio::spawn(pool.handle().acquire());
    let begun = tokio::spawn(pool.handle().begin());
    let with = |options| tokio::spawn(pool.handle().begin_with(options));
    drop(acquired.await.expect("no panic").expect("a connection"));
    drop(begun.await.expect("no panic").expect("a transaction"));
    drop(with(TxOptions::default().read_only()).await.expect("no panic").expect("a transaction"));
}

#[test]
fn a_transaction_is_send_and_sync() {
    fn is<T: Send + Sync>() {}
    is::<Tx>();
    is::<Session>();
    is::<db_core::Conn>();
    is::<db_core::Savepoint<'_>>();
}
