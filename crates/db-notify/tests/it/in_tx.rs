//! A transaction notifies if it commits, or if its outcome is unknown, and not otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use db_core::{Config, Error, Pool, PoolOptions, TxOptions, TxRetry};
use db_notify::{Bus, BusExt, NotifyAfterCommit, NotifyError, NotifyInError, WatchOptions, WatchedTopics};
use db_testkit::{Proxy, TestDb, poll_then_drop, until};

use crate::support::{bus, config, payload, topic};

fn pool(db: &TestDb) -> Pool {
    Pool::new(&config(db), PoolOptions::backend().max(2))
}

/// A table, a pool behind a proxy, and a bus that is attached to the pool and not behind the proxy.
async fn cut_off(db: &TestDb) -> (Proxy, Pool, Bus) {
    execute(db, "create table orders (n int primary key)").await;
    let proxy = Proxy::start(db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let pool = Pool::new(&config, PoolOptions::backend().max(2));
    let bus = bus(db).await;
    pool.attach(Arc::new(bus.clone()));
    (proxy, pool, bus)
}

async fn execute(db: &TestDb, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("done");
}

async fn committed(db: &TestDb) -> BTreeSet<i32> {
    let rows = sqlx::query_scalar("select n from orders").fetch_all(&db.pool()).await;
    rows.expect("rows").into_iter().collect()
}

/// Stores an order and notifies its topic.
async fn order(pool: &Pool, n: i32) -> Result<(), Error> {
    let work = async |tx: &mut db_core::Tx| {
        sqlx::query("insert into orders values ($1)").bind(n).execute(&mut *tx).await?;
        tx.notify_with(&topic("orders"), &n.to_string()).expect("accepted");
        Ok(())
    };
    pool.handle().tx(work).await
}

#[db_testkit::test]
async fn notify_in_notifies_by_the_commit(db: TestDb) {
    let (bus, pool) = (bus(&db).await, pool(&db));
    let mut orders = bus.subscribe(&topic("orders"), 10);

    let mut tx = pool.handle().begin().await.expect("a transaction");
    bus.notify_in(&mut tx, &topic("orders"), "undone").await.expect("accepted");
    tx.rollback().await.expect("rolled back");
    let mut tx = pool.handle().begin().await.expect("a transaction");
    bus.notify_in(&mut tx, &topic("orders"), "done").await.expect("accepted");
    bus.notify_with(&topic("orders"), "meanwhile").await.expect("sent");
    assert_eq!(payload(&mut orders).await, "meanwhile");
    tx.commit().await.expect("committed");

    assert_eq!(payload(&mut orders).await, "done");
}

#[db_testkit::test]
async fn a_payload_that_cannot_be_sent_is_refused_and_the_transaction_goes_on(db: TestDb) {
    let (bus, pool) = (bus(&db).await, pool(&db));
    let mut orders = bus.subscribe(&topic("orders"), 10);
    let mut tx = pool.handle().begin().await.expect("a transaction");

    let error = bus.notify_in(&mut tx, &topic("orders"), "a\0b").await.expect_err("a NUL");
    assert!(matches!(error, NotifyInError::Refused(NotifyError::Nul)), "{error}");
    let error = bus.notify_in(&mut tx, &topic("orders"), &"x".repeat(8000)).await.expect_err("too long");
    assert!(matches!(error, NotifyInError::Refused(NotifyError::TooLong { .. })), "{error}");

    bus.notify_in(&mut tx, &topic("orders"), "done").await.expect("accepted");
    tx.commit().await.expect("committed");
    assert_eq!(payload(&mut orders).await, "done");
}

#[db_testkit::test]
async fn notify_after_commit_notifies_after_a_commit_and_not_after_a_rollback(db: TestDb) {
    let (bus, pool) = (bus(&db).await, pool(&db));
    pool.attach(Arc::new(bus.clone()));
    let mut orders = bus.subscribe(&topic("orders"), 10);
    assert!(pool.handle().bus().is_some());

    let mut tx = pool.handle().begin().await.expect("a transaction");
    tx.notify_with(&topic("orders"), "undone").expect("accepted");
    tx.rollback().await.expect("rolled back");
    let mut tx = pool.handle().begin().await.expect("a transaction");
    assert_eq!(tx.notify_with(&topic("orders"), "a\0b"), Err(NotifyError::Nul));
    tx.notify_with(&topic("orders"), "done").expect("accepted");
    bus.notify_with(&topic("orders"), "meanwhile").await.expect("sent");
    assert_eq!(payload(&mut orders).await, "meanwhile");
    tx.commit().await.expect("committed");

    assert_eq!(payload(&mut orders).await, "done");
}

#[db_testkit::test]
async fn notifying_without_a_bus_is_an_error(db: TestDb) {
    let mut tx = pool(&db).handle().begin().await.expect("a transaction");

    assert_eq!(tx.notify(&topic("orders")), Err(NotifyError::NoBus));

    tx.commit().await.expect("committed all the same");
}

#[db_testkit::test]
async fn a_transaction_dropped_at_any_poll_notifies_if_it_was_committed(db: TestDb) {
    let (proxy, pool, bus) = cut_off(&db).await;
    let mut orders = bus.subscribe(&topic("orders"), 1000);
    // No answer has arrived at the first poll after its statement.
    proxy.latency(Duration::from_millis(1));

    let mut n = 0;
    // The first run connects and prepares. The next ones are cut off, each one poll later.
    for polls in [1000].into_iter().chain(0..) {
        n += 1;
        until("the connection is back", async || {
            let stats = pool.stats();
            stats.in_use + stats.repairing + stats.dialling == 0
        })
        .await;
        let done = poll_then_drop(order(&pool, n), polls).await.is_some();
        if done && n > 1 {
            break;
        }
    }
    db.until_quiet().await;
    let committed = committed(&db).await;
    bus.notify_with(&topic("orders"), "that is all").await.expect("sent");

    let mut told = BTreeSet::new();
    loop {
        let payload = payload(&mut orders).await;
        match payload.parse() {
            Ok(n) => told.insert(n),
            Err(_) => break,
        };
    }
    let untold: Vec<_> = committed.difference(&told).collect();
    assert!(untold.is_empty(), "committed {committed:?}, and nobody was told of {untold:?}");
    assert!(committed.len() > 2, "none was cut off in its commit: {committed:?}");
}

#[db_testkit::test]
async fn a_handler_dropped_in_a_slow_commit_notifies_once_the_commit_is_visible(db: TestDb) {
    let (_proxy, pool, bus) = cut_off(&db).await;
    execute(
        &db,
        "create function wait() returns trigger language plpgsql
           as 'begin perform pg_advisory_xact_lock(1); return null; end';
         create constraint trigger wait after insert on orders deferrable initially deferred
           for each row execute function wait()",
    )
    .await;
    let mut orders = bus.subscribe(&topic("orders"), 10);
    let mut gate = db.pool().begin().await.expect("a transaction");
    sqlx::query("select pg_advisory_xact_lock(1)").execute(&mut *gate).await.expect("shut");

    let handler = tokio::spawn({
        let pool = pool.clone();
        async move { order(&pool, 1).await }
    });
    let waits = |session: &db_testkit::Session| session.wait.as_deref() == Some("Lock: advisory");
    db.until_sessions("the commit waits", |all| all.iter().any(waits)).await;
    // A server drops the handler of a client that hangs up.
    handler.abort();
    until("it is dropped", async || handler.is_finished()).await;
    gate.commit().await.expect("open");

    assert_eq!(payload(&mut orders).await, "1");
    assert_eq!(committed(&db).await, [1].into(), "who is woken looks, and sees it");
}

#[db_testkit::test]
async fn a_commit_with_an_unknown_outcome_notifies(db: TestDb) {
    let (proxy, pool, bus) = cut_off(&db).await;
    let mut orders = bus.subscribe(&topic("orders"), 10);

    proxy.cut_answer_to("COMMIT");
    let error = order(&pool, 1).await.expect_err("no answer");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!(payload(&mut orders).await, "1");

    proxy.cut_answer_to("COMMIT");
    let again = pool.handle().tx_retry(TxOptions::default(), TxRetry::default(), || {
        async move |tx| {
            sqlx::query("insert into orders values (2)").execute(&mut *tx).await?;
            tx.notify_with(&topic("orders"), "2").expect("accepted");
            Ok::<_, Error>(())
        }
    });
    let error = again.await.expect_err("no answer");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!(payload(&mut orders).await, "2");

    // The program ends the transaction by a statement of its own, which `Tx` does not see.
    let mut tx = pool.handle().begin().await.expect("a transaction");
    sqlx::query("insert into orders values (3)").execute(&mut tx).await.expect("inserted");
    tx.notify_with(&topic("orders"), "3").expect("accepted");
    sqlx::query("commit").execute(&mut tx).await.expect("committed");
    let error = tx.commit().await.expect_err("it had ended");
    assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
    assert_eq!(payload(&mut orders).await, "3");
    assert_eq!(committed(&db).await, [1, 2, 3].into());
}

#[db_testkit::test]
async fn a_commit_with_an_unknown_outcome_notifies_a_watched_topic(db: TestDb) {
    let (proxy, pool, bus) = cut_off(&db).await;
    let watched = WatchedTopics::new(&bus, &topic("watched"), &WatchOptions::default());
    let mut orders = bus.subscribe(&topic("orders"), 10);

    let mut tx = pool.handle().begin().await.expect("a transaction");
    watched.notify_after(&mut tx, &topic("orders"));
    proxy.cut_answer_to("COMMIT");
    tx.commit().await.expect_err("no answer");

    assert_eq!(payload(&mut orders).await, "");
}

#[db_testkit::test]
async fn a_transaction_known_to_be_undone_notifies_nothing(db: TestDb) {
    let (proxy, pool, bus) = cut_off(&db).await;
    execute(&db, "create table children (n int references orders deferrable initially deferred)").await;
    let mut orders = bus.subscribe(&topic("orders"), 10);
    let begin = async |n: i32| {
        let mut tx = pool.handle().begin_with(TxOptions::default().resolve_commit()).await.expect("begun");
        sqlx::query("insert into children values ($1)").bind(n).execute(&mut tx).await.expect("inserted");
        tx.notify_with(&topic("orders"), &n.to_string()).expect("accepted");
        tx
    };

    // The server refuses the commit; with its answer received, and lost.
    begin(1).await.commit().await.expect_err("no such order");
    for polls in 1.. {
        if poll_then_drop(begin(2).await.commit(), polls).await.is_some() {
            break;
        }
    }
    // The commit never arrived, which the server confirms.
    proxy.cut_before("COMMIT");
    let error = begin(3).await.commit().await.expect_err("it did not arrive");
    assert!(matches!(error, Error::RolledBack(_)), "{error:?}");
    // The savepoint was undone in a transaction that commits, or may have committed.
    let mut tx = pool.handle().begin().await.expect("begun");
    let mut part = tx.savepoint().await.expect("a savepoint");
    part.unless_rolled_back(|| panic!("it was undone"));
    drop(part);
    proxy.cut_answer_to("COMMIT");
    tx.commit().await.expect_err("no answer");
    db.until_quiet().await;
    bus.notify_with(&topic("orders"), "that is all").await.expect("sent");

    assert_eq!(payload(&mut orders).await, "that is all");
}
