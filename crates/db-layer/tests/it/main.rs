//! What `db-layer` promises, shown on a real PostgreSQL.

#[cfg(target_os = "linux")]
mod columns;
mod keepalive;
mod keys;
mod lazy;
#[cfg(feature = "metrics")]
mod measuring;
mod monitoring;
mod opening;
mod options;
mod readiness;
#[cfg(feature = "redis")]
mod redis;
mod schemas;
mod secrets;
mod served;
mod settings;
mod shutting_down;
mod sizing;
mod starting;
mod warm;

use std::path::Path;
use std::time::Duration;

use db_layer::db_core::ConnectFailure;
use db_layer::db_notify::Delivery;
use db_layer::encryption::{Context, Key, Keyring, Strategy};
use db_layer::{
    BusExt, Config, Db, Migrations, NewEvent, NotifyAfterCommit, OpenError, Options, PoolOptions, Topic,
};
use db_testkit::{TestDb, until};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

async fn options(db: &TestDb) -> Options {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    Options::new(config(db)).migrations(Migrations::from_dir(folder).await.expect("migrations"))
}

async fn open(db: &TestDb) -> Db {
    db_layer::open(options(db).await).await.expect("an open database")
}

#[db_testkit::test]
async fn one_call_migrates_and_gives_pools_bus_logs_and_keys(db: TestDb) {
    let keyring = Keyring::new(&Key::generate().expect("a key"));
    let layer = db_layer::open(options(&db).await.keys(keyring)).await.expect("an open database");

    for handle in [layer.api(), layer.backend()] {
        let one: i32 = sqlx::query_scalar("select 1").fetch_one(handle).await.expect("an answer");
        assert_eq!(one, 1);
    }
    assert_eq!((layer.api().pool().name(), layer.backend().pool().name()), ("api", "backend"));

    let topic = Topic::new("t").expect("a topic");
    let mut subscription = layer.bus().subscribe(&topic, 1);
    layer.bus().notify(&topic).await.expect("sent");
    assert!(tokio::time::timeout(PATIENCE, subscription.recv()).await.expect("in time").is_some());

    let log = layer.events().create().await.expect("a log");
    assert_eq!(layer.events().append(log, &[NewEvent::new("n", "")]).await.expect("appended"), 1..=1);

    let keys = layer.keys().expect("a keyring");
    let place = Context::new("t", "c", 1);
    let sealed = keys.seal_json(&7, &place).expect("sealed");
    assert_eq!(keys.unseal_json(&sealed, &place).expect("unsealed"), 7);
}

#[db_testkit::test]
async fn opening_says_which_step_failed(db: TestDb) {
    let nowhere = Options::new(config(&db).with_database("nope"));
    let error = db_layer::open(nowhere).await.expect_err("no database");
    assert!(
        matches!(&error, OpenError::Connect(connect) if matches!(connect.failure(), ConnectFailure::NoSuchDatabase(_))),
        "{error:?}"
    );

    let namespace = Options::new(config(&db)).namespace("");
    assert!(matches!(db_layer::open(namespace).await, Err(OpenError::Bus(_))));
}

#[db_testkit::test]
async fn shutdown_closes_everything_and_says_what_it_could_not(db: TestDb) {
    let layer = open(&db).await;
    let held = layer.backend().acquire().await.expect("a connection");
    assert!(!layer.closing().is_cancelled());

    let report = layer.shutdown(Duration::from_millis(500)).await;

    assert!(layer.closing().is_cancelled());
    assert!(report.bus_closed && report.api.is_clean() && !report.backend.in_time, "{report:?}");
    assert!(report.backend.aborted[0].at.to_string().starts_with(file!()), "{report:?}");
    let refused = layer.api().acquire().await.expect_err("closed");
    assert!(refused.is_closed(), "{refused}");

    drop(held);
    let report = layer.shutdown(PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
}

#[db_testkit::test]
async fn commits_during_a_shutdown_are_still_notified(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db))).await.expect("opened");
    // Stands for another process.
    let other = db_layer::open(Options::new(config(&db))).await.expect("opened");
    let topic = Topic::new("orders").expect("a topic");
    let mut heard = other.bus().subscribe(&topic, 10);
    let mut tx = layer.backend().begin().await.expect("begun");
    tx.notify_with(&topic, "paid").expect("accepted");
    let shutdown = tokio::spawn({
        let layer = layer.clone();
        async move { layer.shutdown(PATIENCE).await }
    });
    until("the pools refuse callers", async || {
        layer.backend().acquire().await.is_err_and(|error| error.is_closed())
    })
    .await;

    tx.commit().await.expect("committed");

    let delivery = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("an open bus");
    assert!(
        matches!(&delivery, Delivery::Notification(notification) if notification.payload() == "paid"),
        "{delivery:?}"
    );
    let report = shutdown.await.expect("no panic");
    assert!(report.is_clean(), "{report:?}");
}

#[db_testkit::test]
async fn further_pools_are_found_by_their_names_and_closed_with_the_others(db: TestDb) {
    let options = Options::new(config(&db)).pool(PoolOptions::named("gc").max(1));
    let layer = db_layer::open(options).await.expect("opened");
    let gc = layer.pool("gc").expect("the pool that was asked for");
    assert!(layer.pool("worker").is_none());

    let named: String = sqlx::query_scalar("select current_setting('application_name')")
        .fetch_one(gc.clone())
        .await
        .expect("a name");
    assert_eq!((named.as_str(), gc.pool().stats().max), ("gc", 1));

    let held = gc.acquire().await.expect("its only connection");
    let report = layer.shutdown(Duration::from_millis(300)).await;
    assert!(
        report.named[0].0 == "gc" && report.named[0].1.aborted.len() == 1 && !report.is_clean(),
        "{report:?}"
    );
    drop(held);
}

#[db_testkit::test]
async fn handles_and_transactions_reach_the_bus_and_the_keys(db: TestDb) {
    let key = Key::generate().expect("a key");
    let options = options(&db).await.keys(Keyring::new(&key)).pool(PoolOptions::named("gc"));
    let layer = db_layer::open(options).await.expect("opened");
    let topic = Topic::new("orders").expect("a topic");
    let place = Context::new("orders", "iban", 1);

    for handle in [layer.api(), layer.backend(), layer.pool("gc").expect("a pool")] {
        let mut heard = layer.bus().subscribe(&topic, 10);
        assert!(handle.bus().is_some() && handle.keys().is_some());

        let mut dropped = handle.begin().await.expect("begun");
        dropped.notify_with(&topic, "never").expect("accepted");
        drop(dropped);
        let mut tx = handle.begin().await.expect("begun");
        let sealed = tx.keys().expect("the keys").seal_json(&"DE02".to_owned(), &place).expect("sealed");
        tx.notify_with(&topic, "paid").expect("accepted");
        assert!(tx.notify_with(&topic, "\0").is_err(), "what cannot be sent is refused at once");
        tx.commit().await.expect("committed");

        let delivery =
            tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("an open bus");
        assert!(
            matches!(&delivery, Delivery::Notification(notification) if notification.payload() == "paid"),
            "{delivery:?}"
        );
        let opened: String = layer.keys().expect("the keys").unseal_json(&sealed, &place).expect("unsealed");
        assert_eq!(opened, "DE02");
    }
}
