//! What a transaction notifies of: if it commits, and not otherwise.

use std::sync::Arc;

use db_core::{Pool, PoolOptions};
use db_notify::{NotifyAfterCommit, NotifyError, NotifyInError, OnBus};
use db_testkit::TestDb;

use crate::support::{bus, config, payload, topic};

fn pool(db: &TestDb) -> Pool {
    Pool::new(&config(db), PoolOptions { max: 2, ..PoolOptions::backend() })
}

#[db_testkit::test]
async fn a_transaction_that_notifies_within_itself_does_so_by_its_commit(db: TestDb) {
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
async fn what_can_never_be_sent_is_refused_and_the_transaction_goes_on(db: TestDb) {
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
async fn what_is_notified_of_after_the_commit_is_sent_then_and_not_after_a_rollback(db: TestDb) {
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
async fn a_pool_without_a_bus_says_so(db: TestDb) {
    let mut tx = pool(&db).handle().begin().await.expect("a transaction");

    assert_eq!(tx.notify(&topic("orders")), Err(NotifyError::NoBus));

    tx.commit().await.expect("committed all the same");
}
