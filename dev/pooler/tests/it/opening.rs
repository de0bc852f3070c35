//! Opening through a real pooler in transaction mode.

use std::time::Duration;

use db_layer::db_core::connect::connect;
use db_layer::db_core::{ConnectFailure, ConnectRetry, Pooler};
use db_layer::db_notify::OpenError as BusError;
use db_layer::{Bus, BusOptions, Config, OpenError, Options, Settings, Topic};
use db_testkit::{PgBouncer, PgBouncerBuilder, TestDb, until};
use harness::Log;
use sqlx::{ConnectOptions, Connection, Executor, Row};

use crate::support::PATIENCE;

fn following() -> PgBouncerBuilder {
    PgBouncer::builder().default_pool_size(4).max_prepared_statements(100)
}

fn direct(db: &TestDb) -> Config {
    Config::from_url(&db.direct_url()).expect("the database's own address")
}

#[db_testkit::test]
async fn all_of_a_database_works_with_its_pools_behind_a_pooler_for_two_services(db: TestDb) {
    let bouncer = following().start(&db).await.expect("a pooler");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations");
    let log = Log::of_this_process("trace");
    let mut services = Vec::new();
    for _ in 0..2 {
        let migrations = db_layer::Migrations::from_dir(folder).await.expect("migrations");
        let settings = Settings::default()
            .set("database-url", bouncer.url())
            .set("database-url-direct", db.direct_url())
            .options()
            .expect("nothing is wrong");
        services.push(db_layer::open(settings.migrations(migrations)).await.expect("opened"));
    }
    let lines = log.lines_with(&[db.name(), "prepared statements work, and LISTEN delivers past it"]);
    assert_eq!(lines.len(), 2, "one line each: {lines:?}");

    let topic = Topic::new("orders").expect("a topic");
    let mut heard = services[1].bus().subscribe(&topic, 10);
    let committed = services[0].api().tx(async |tx| {
        use db_layer::NotifyAfterCommit;
        tx.notify_with(&topic, "1")?;
        Ok::<i32, Box<dyn std::error::Error + Send + Sync>>(
            sqlx::query_scalar("select $1::int4").bind(7).fetch_one(&mut *tx).await?,
        )
    });
    assert_eq!(committed.await.expect("committed"), 7);
    let delivery = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time");
    assert!(delivery.is_some());
    let events = services[0].events();
    let log_of_events = events.create().await.expect("a log");
    events.append(log_of_events, &[db_layer::NewEvent::new("a", "b")]).await.expect("appended");
    let mut stream = services[1].events().stream(log_of_events, 0);
    let batch = tokio::time::timeout(PATIENCE, stream.next_batch()).await.expect("in time").expect("events");
    assert_eq!(batch.map(|batch| batch.len()), Some(1));
    for service in services {
        assert!(service.shutdown(Duration::from_secs(10)).await.is_clean());
    }
}

#[db_testkit::test]
async fn a_pooler_that_cannot_do_it_fails_the_opening_with_the_reason(db: TestDb) {
    let bouncer = PgBouncer::builder().max_prepared_statements(0).start(&db).await.expect("a pooler");
    let through = Config::from_url(&bouncer.url()).expect("its address");

    let error = db_layer::open(Options::new(through).direct(Some(direct(&db)))).await.expect_err("refused");

    let OpenError::Connect(error) = error else { panic!("{error}") };
    assert!(matches!(error.failure(), ConnectFailure::Pooler(_)), "{error}");
    assert!(error.to_string().contains("max_prepared_statements above 0"), "{error}");
}

/// The worst case: the address does not declare the pooler, and the pooler lets everything pass.
#[db_testkit::test]
async fn a_bus_notices_that_listen_delivers_nothing(db: TestDb) {
    let unaware = following().setting("ignore_startup_parameters", "extra_float_digits,options");
    // The notifier gets another session than the listener, and nobody receives the notification.
    let several = unaware.clone().setting("min_pool_size", "3").setting("server_round_robin", "1");
    let bouncer = several.start(&db).await.expect("a pooler");
    let unsaid = Config::from_url(&bouncer.url()).expect("its address").with_pooler(Pooler::None);
    connect(&unsaid, ConnectRetry::default()).await.expect("let through").close().await.expect("closed");
    let mut admin = bouncer.options().database("pgbouncer").connect().await.expect("its administration");
    until("all sessions idle", async || {
        let servers = admin.fetch_all(sqlx::raw_sql("show servers")).await.expect("a list");
        servers.iter().filter(|server| server.get::<&str, _>("state") == "idle").count() == 3
    })
    .await;
    let error = Bus::open(&unsaid, BusOptions::default()).await.expect_err("delivers nothing");
    assert!(matches!(error, BusError::NothingDelivered { .. }), "{error}");

    // The notifier gets the listener's session, and that session receives the notification itself.
    let bouncer = unaware.start(&db).await.expect("a pooler");
    let unsaid = Config::from_url(&bouncer.url()).expect("its address").with_pooler(Pooler::None);

    let error = Bus::open(&unsaid, BusOptions::default()).await.expect_err("delivers nothing");
    assert!(matches!(error, BusError::NothingDelivered { .. }) && error.is_final(), "{error}");
    assert!(error.to_string().contains("DATABASE_URL_DIRECT"), "{error}");

    let error = db_layer::open(Options::new(unsaid.clone())).await.expect_err("delivers nothing");
    assert!(matches!(error, OpenError::Bus(BusError::NothingDelivered { .. })), "{error}");

    // A lazy bus has no caller to report to: it does not claim to listen, and logs the reason once.
    let lazy = Bus::lazy(&unsaid, &BusOptions::default()).expect("nobody is asked");
    let log = Log::of_this_process("trace");
    let topic = Topic::new("orders").expect("a topic");
    let _waiting = lazy.subscribe(&topic, 1);
    until("it was said", async || !log.lines_with(&[db.name(), "delivers nothing"]).is_empty()).await;
    until("it was tried again", async || {
        !log.lines_with(&["DEBUG", "cannot listen yet", "delivers nothing"]).is_empty()
    })
    .await;
    assert_eq!(log.lines_with(&[db.name(), "delivers nothing", "WARN"]).len(), 1);
    assert!(!lazy.state().is_connected());
    drop(lazy);

    let said = unsaid.with_pooler(Pooler::Transaction);
    let error = Bus::open(&said, BusOptions::default()).await.expect_err("refused");
    assert!(matches!(error, BusError::Pooled { .. }), "{error}");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations");
    let migrations = db_layer::Migrations::from_dir(folder).await.expect("migrations");
    for error in [
        migrations.up(&said).await.expect_err("refused"),
        migrations.down_to(&said, 0).await.expect_err("refused"),
    ] {
        assert!(error.to_string().contains("need a session of their own"), "{error}");
    }
}
