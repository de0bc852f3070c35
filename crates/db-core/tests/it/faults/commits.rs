//! Links that are lost in a transaction, or before or after its commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use db_core::{Class, CloseReason, Config, Error, Pool, Tx, TxOptions, TxRetry};
use db_testkit::{TestDb, poll_then_drop, until};
use futures_util::FutureExt;
use tokio::time::timeout;

use super::stage::{Gate, LONG, ends, hasty, options, recovers, rows, stage, table, until_quiet};

/// A retry policy with short pauses.
fn soon() -> TxRetry {
    TxRetry::default()
        .retries(3)
        .min_pause(Duration::from_millis(10))
        .max_pause(Duration::from_millis(50))
        .conflict_pause(Duration::from_millis(10))
}

/// Counts the runs of hooks.
#[derive(Clone, Default)]
struct Hooks(Arc<AtomicU32>);

impl Hooks {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn run(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// A hook that counts its run.
    fn hook(&self) -> impl FnOnce() + Send + 'static {
        let counted = self.clone();
        move || counted.count()
    }
}

/// Inserts a row and commits.
async fn insert(pool: &Pool, options: TxOptions, hooks: &Hooks) -> Result<(), Error> {
    let work = pool.handle().tx_with(options, async |tx| {
        let counted = hooks.clone();
        tx.after_commit(move || counted.count());
        sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    ends(work).await
}

/// As `insert`, with retries. Returns the number of attempts.
async fn insert_retrying(pool: &Pool, options: TxOptions, hooks: &Hooks) -> Result<u32, Error> {
    let attempts = &AtomicU32::new(0);
    let work = pool.handle().tx_retry(options, soon(), || {
        let counted = hooks.clone();
        async move |tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            tx.after_commit(move || counted.count());
            sqlx::query("insert into t values (1)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        }
    });
    ends(work).await?;
    Ok(attempts.load(Ordering::SeqCst))
}

fn resolve() -> TxOptions {
    TxOptions::default().resolve_commit()
}

#[db_testkit::test]
async fn a_link_lost_in_a_statement_of_a_transaction_leaves_nothing_of_it(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));
    let hooks = Hooks::default();
    // The row is stored in a transaction that can no longer be committed.
    proxy.cut_answer_to("insert into t");

    let error = insert(&pool, TxOptions::default(), &hooks).await.expect_err("no answer");

    assert!(matches!(error, Error::Statement(_)) && error.class() == Class::Lost, "{error:?}");
    recovers(&pool).await;
    db.until_quiet().await;
    assert_eq!((rows(&db).await, hooks.run()), (0, 0));
}

#[db_testkit::test]
async fn a_transaction_whose_link_was_lost_is_repeated_and_stored_once(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));
    let hooks = Hooks::default();
    proxy.cut_answer_to("insert into t");

    let attempts =
        insert_retrying(&pool, TxOptions::default(), &hooks).await.expect("success on the second attempt");

    assert_eq!((attempts, rows(&db).await, hooks.run()), (2, 1, 1));
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_commit_whose_answer_was_lost_is_unknown_and_never_repeated(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));
    let hooks = Hooks::default();

    proxy.cut_answer_to("COMMIT");
    let error = insert(&pool, TxOptions::default(), &hooks).await.expect_err("no answer");
    assert!(matches!(error, Error::CommitUnknown(_)) && error.class() == Class::Lost, "{error:?}");
    assert_eq!((rows(&db).await, hooks.run()), (1, 0));

    proxy.cut_answer_to("COMMIT");
    let error = insert_retrying(&pool, TxOptions::default(), &hooks).await.expect_err("no answer");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!((rows(&db).await, hooks.run()), (2, 0), "one row for each attempt");
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_commit_whose_answer_was_lost_is_resolved_as_committed(db: TestDb) {
    table(&db).await;
    // The pool has one slot, which the lost connection must not keep.
    let (proxy, pool) = stage(&db, options(1));
    let hooks = Hooks::default();

    proxy.cut_answer_to("COMMIT");
    insert(&pool, resolve(), &hooks).await.expect("committed");
    assert_eq!((rows(&db).await, hooks.run()), (1, 1));

    proxy.cut_answer_to("COMMIT");
    let attempts = insert_retrying(&pool, resolve(), &hooks).await.expect("committed");
    assert_eq!((attempts, rows(&db).await, hooks.run()), (1, 2, 2));
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_commit_that_never_arrived_is_resolved_as_rolled_back(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(1));
    let hooks = Hooks::default();

    proxy.cut_before("COMMIT");
    let error = insert(&pool, resolve(), &hooks).await.expect_err("the commit did not arrive");
    assert!(matches!(error, Error::RolledBack(_)) && error.class() == Class::Conflict, "{error:?}");
    assert!(error.is_transient());
    assert_eq!((rows(&db).await, hooks.run()), (0, 0));

    proxy.cut_before("COMMIT");
    let attempts = insert_retrying(&pool, resolve(), &hooks).await.expect("success on the second attempt");
    assert_eq!((attempts, rows(&db).await, hooks.run()), (2, 1, 1));
    recovers(&pool).await;
}

/// A table whose commits wait at the gate.
async fn table_with_slow_commits(db: &TestDb) {
    table(db).await;
    sqlx::raw_sql(
        "create function wait() returns trigger language plpgsql
           as 'begin perform pg_advisory_xact_lock(1); return null; end';
         create constraint trigger wait after insert on t deferrable initially deferred
           for each row execute function wait()",
    )
    .execute(&db.pool())
    .await
    .expect("a trigger");
}

#[db_testkit::test]
async fn a_commit_in_a_black_hole_is_resolved_after_the_network_recovers(db: TestDb) {
    table_with_slow_commits(&db).await;
    let (proxy, pool) = stage(&db, hasty(1, Duration::from_secs(1), Duration::from_secs(2)));
    let hooks = Hooks::default();
    let gate = Gate::shut(&db).await;
    let fault = async {
        gate.until_waiting(1).await;
        proxy.black_hole();
        until("the deadline has passed", async || pool.stats().totals.closed.of(CloseReason::Lost) > 0).await;
        gate.open().await;
        until("the transaction is committed", async || rows(&db).await == 1).await;
        proxy.heal();
    };

    let (result, ()) = tokio::join!(insert(&pool, resolve(), &hooks), fault);

    result.expect("committed");
    assert_eq!((rows(&db).await, hooks.run()), (1, 1));
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_commit_that_does_not_end_is_terminated_and_resolved_as_rolled_back(db: TestDb) {
    table_with_slow_commits(&db).await;
    let deadline = Duration::from_secs(1);
    let (proxy, pool) = stage(&db, hasty(1, LONG, deadline));
    let hooks = Hooks::default();
    let gate = Gate::shut(&db).await;
    let begun = Instant::now();
    let fault = async {
        gate.until_waiting(1).await;
        proxy.freeze_open();
    };

    let (result, ()) = tokio::join!(insert(&pool, resolve(), &hooks), fault);

    // The gate is still shut, and the link still frozen.
    assert!(begun.elapsed() < deadline + Duration::from_secs(5), "{:?}", begun.elapsed());
    let error = result.expect_err("not committed");
    assert!(matches!(error, Error::RolledBack(_)), "{error:?}");
    db.until_quiet().await;
    gate.open().await;
    proxy.thaw();
    recovers(&pool).await;
    // A connection whose session may be ended at any moment is not repaired.
    let totals = pool.stats().totals;
    assert_eq!(
        (totals.closed.of(CloseReason::Lost), totals.repaired, totals.repair_failed),
        (1, 0, 0),
        "{totals:?}"
    );
    assert_eq!((rows(&db).await, hooks.run()), (0, 0));
}

#[db_testkit::test]
async fn a_commit_in_a_black_hole_that_stays_is_unknown_after_ten_seconds(db: TestDb) {
    table_with_slow_commits(&db).await;
    let second = Duration::from_secs(1);
    let (proxy, pool) = stage(&db, hasty(1, second, second));
    let hooks = Hooks::default();
    let gate = Gate::shut(&db).await;
    let begun = Instant::now();
    let fault = async {
        gate.until_waiting(1).await;
        proxy.black_hole();
    };

    let (result, ()) = tokio::join!(insert(&pool, resolve(), &hooks), fault);

    assert!(begun.elapsed() < second * 13, "{:?}", begun.elapsed());
    let error = result.expect_err("the outcome is unknown");
    assert!(matches!(error, Error::CommitUnknown(_)) && error.class() == Class::Lost, "{error:?}");
    assert_eq!(hooks.run(), 0);
    proxy.heal();
    gate.open().await;
    recovers(&pool).await;
}

#[db_testkit::test]
async fn a_commit_is_resolved_although_the_pool_was_dropped(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));
    let mut tx = pool.handle().begin_with(resolve()).await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    drop(pool);

    proxy.cut_answer_to("COMMIT");
    tx.commit().await.expect("the server reports it as committed");

    assert_eq!(rows(&db).await, 1);
}

/// Begins a transaction with a row and both kinds of hooks: `committed` counts `after_commit`, `uncertain` counts
/// `unless_rolled_back`.
async fn begun(pool: &Pool, options: TxOptions) -> (Tx, Hooks, Hooks) {
    let (committed, uncertain) = (Hooks::default(), Hooks::default());
    let mut tx = pool.handle().begin_with(options).await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    tx.after_commit(committed.hook());
    tx.unless_rolled_back(uncertain.hook());
    (tx, committed, uncertain)
}

#[db_testkit::test]
async fn after_a_lost_answer_only_unless_rolled_back_hooks_run(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));

    let (tx, committed, uncertain) = begun(&pool, TxOptions::default()).await;
    proxy.cut_answer_to("COMMIT");
    let error = ends(tx.commit()).await.expect_err("no answer");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!((committed.run(), uncertain.run()), (0, 1), "before the error is returned");

    // The session is ended before the commit arrives, which the client cannot know.
    let (tx, committed, uncertain) = begun(&pool, TxOptions::default()).await;
    sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(tx.pid())
        .execute(&db.pool())
        .await
        .expect("ended");
    let error = ends(tx.commit()).await.expect_err("no session");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!((committed.run(), uncertain.run()), (0, 1));
    recovers(&pool).await;
}

#[db_testkit::test]
async fn after_a_resolved_commit_all_hooks_run_or_none(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));

    let (tx, committed, uncertain) = begun(&pool, resolve()).await;
    proxy.cut_answer_to("COMMIT");
    ends(tx.commit()).await.expect("committed");
    assert_eq!((committed.run(), uncertain.run()), (1, 1));

    let (tx, committed, uncertain) = begun(&pool, resolve()).await;
    proxy.cut_before("COMMIT");
    ends(tx.commit()).await.expect_err("the commit did not arrive");
    assert_eq!((committed.run(), uncertain.run()), (0, 0));

    // The future is dropped while the outcome is queried.
    let (tx, committed, uncertain) = begun(&pool, resolve()).await;
    proxy.cut_answer_to("COMMIT");
    let dropped = timeout(
        LONG,
        poll_then_drop(
            async {
                let committing = tx.commit();
                tokio::pin!(committing);
                until("the answer is lost, and the outcome not queried yet", async || {
                    (&mut committing).now_or_never().is_none()
                        && pool.stats().totals.closed.of(CloseReason::Lost) == 3
                })
                .await;
            },
            1000,
        ),
    );
    dropped.await.expect("in time").expect("lost");
    assert_eq!((committed.run(), uncertain.run()), (0, 1));
    recovers(&pool).await;
}

#[db_testkit::test]
async fn the_answer_to_a_commit_whose_future_was_dropped_is_read_in_the_background(db: TestDb) {
    table_with_slow_commits(&db).await;
    let (_proxy, pool) = stage(&db, options(2));

    let (tx, committed, uncertain) = begun(&pool, TxOptions::default()).await;
    let gate = Gate::shut(&db).await;
    let committing = tokio::spawn(tx.commit());
    gate.until_waiting(1).await;
    committing.abort();
    committing.await.expect_err("aborted");
    assert_eq!(
        (rows(&db).await, committed.run(), uncertain.run()),
        (0, 0, 0),
        "no hook runs before the server is done"
    );
    gate.open().await;

    recovers(&pool).await;
    assert_eq!((rows(&db).await, committed.run(), uncertain.run()), (1, 1, 1));
}

#[db_testkit::test]
async fn a_refused_commit_whose_future_was_dropped_runs_no_hook(db: TestDb) {
    table(&db).await;
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as 'begin perform pg_sleep(0.2); raise exception $$no$$; end';
         create constraint trigger refuse after insert on t deferrable initially deferred
           for each row execute function refuse()",
    )
    .execute(&db.pool())
    .await
    .expect("a trigger");
    let (_proxy, pool) = stage(&db, options(2));

    let (tx, committed, uncertain) = begun(&pool, TxOptions::default()).await;
    assert!(poll_then_drop(tx.commit(), 1).await.is_none(), "the future was dropped while pending");

    recovers(&pool).await;
    assert_eq!((rows(&db).await, committed.run(), uncertain.run()), (0, 0, 0));
}

#[db_testkit::test]
async fn a_commit_that_does_not_end_in_time_runs_unless_rolled_back_hooks(db: TestDb) {
    table_with_slow_commits(&db).await;
    let (_proxy, pool) = stage(&db, hasty(2, LONG, Duration::from_millis(200)));

    let (tx, committed, uncertain) = begun(&pool, TxOptions::default()).await;
    let gate = Gate::shut(&db).await;
    let error = ends(tx.commit()).await.expect_err("no answer in time");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");

    until("the repair gives up", async || uncertain.run() == 1).await;
    assert_eq!(committed.run(), 0);
    gate.open().await;
    recovers(&pool).await;
}

#[db_testkit::test]
async fn pending_hooks_run_when_the_runtime_ends(db: TestDb) {
    table_with_slow_commits(&db).await;
    let gate = Gate::shut(&db).await;
    let url = db.url();
    let (ending, ended) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let hooks = runtime.block_on(async {
            let pool = Pool::new(&Config::from_url(&url).expect("an address"), options(2));
            let (tx, committed, uncertain) = begun(&pool, TxOptions::default()).await;
            tokio::spawn(tx.commit());
            // The commit is sent, and waits.
            tokio::task::spawn_blocking(move || ending.1.recv()).await.expect("no panic").expect("a signal");
            (committed, uncertain)
        });
        drop(runtime);
        ended.0.send(()).expect("the test waits");
        hooks
    });
    gate.until_waiting(1).await;
    ending.0.send(()).expect("a thread");
    tokio::task::spawn_blocking(move || ended.1.recv()).await.expect("no panic").expect("a signal");

    let (committed, uncertain) = thread.join().expect("no panic");
    assert_eq!((committed.run(), uncertain.run()), (0, 1));
    gate.open().await;
}

#[db_testkit::test]
async fn a_hook_that_panics_keeps_no_other_from_running(db: TestDb) {
    table(&db).await;
    let (_proxy, pool) = stage(&db, options(2));
    let mut tx = pool.handle().begin().await.expect("begun");
    let hooks = Hooks::default();
    tx.after_commit(|| panic!("on purpose: a hook panics"));
    tx.unless_rolled_back(hooks.hook());

    let ended = tokio::spawn(tx.commit()).await;

    assert!(ended.is_err_and(|error| error.is_panic()));
    assert_eq!(hooks.run(), 1);
    until_quiet(&pool).await;
}

#[db_testkit::test]
async fn the_hook_of_an_abandoned_statement_runs_once_it_has_ended(db: TestDb) {
    table(&db).await;
    let (proxy, pool) = stage(&db, options(2));
    let insert = "insert into t values (1)";
    // The answer cannot have arrived at the first poll.
    let slow = "insert into t select 1 from pg_sleep(0.2)";
    let taken = async || {
        let hooks = Hooks::default();
        let mut conn = pool.handle().acquire().await.expect("a connection");
        conn.if_abandoned(hooks.hook());
        (conn, hooks)
    };

    let (mut conn, answered) = taken().await;
    sqlx::query(insert).execute(&mut conn).await.expect("inserted");
    sqlx::query("select 1 / 0").execute(&mut conn).await.expect_err("a division by zero");
    drop(conn);
    let (mut conn, abandoned) = taken().await;
    assert!(poll_then_drop(sqlx::raw_sql(slow).execute(&mut conn), 1).await.is_none());
    drop(conn);
    let (mut conn, drained) = taken().await;
    assert!(poll_then_drop(sqlx::raw_sql(slow).execute(&mut conn), 1).await.is_none());
    sqlx::query("select 1").execute(&mut conn).await.expect("the next statement");
    assert_eq!(drained.run(), 1, "the connection is still used");
    drop(conn);
    let (mut conn, lost) = taken().await;
    proxy.cut_answer_to(insert);
    sqlx::query(insert).execute(&mut conn).await.expect_err("no answer");
    drop(conn);

    until("the hooks run in the background", async || (abandoned.run(), lost.run()) == (1, 1)).await;
    recovers(&pool).await;
    assert_eq!((answered.run(), drained.run(), abandoned.run(), lost.run()), (0, 1, 1, 1));
}
