//! What is ready when `open` returns.

use std::time::Duration;

use db_embedded::Server;
use db_layer::db_core::ConnectFailure;
use db_layer::db_notify::OpenError as BusError;
use db_layer::{ConnectRetry, OpenError, Options, PoolOptions};
use db_testkit::{Proxy, TestDb, TestServer, until};

use crate::{config, options};

fn warm(options: Options, min_idle: u32) -> Options {
    options
        .api(PoolOptions::api().min_idle(min_idle))
        .backend(PoolOptions::backend().min_idle(min_idle))
        .pool(PoolOptions::named("gc").max(2).min_idle(1))
}

#[db_testkit::test]
async fn an_open_database_has_its_connections_ready_and_its_bus_listening(db: TestDb) {
    let layer = db_layer::open(warm(options(&db).await, 2)).await.expect("opened");

    // Asserted at once, without waiting.
    for (handle, ready) in [(layer.api(), 2), (layer.backend(), 2), (layer.pool("gc").expect("a pool"), 1)] {
        assert_eq!(handle.pool().stats().idle, ready, "{:?}", handle.pool().stats());
    }
    let sessions = db.sessions().await.expect("sessions");
    let count = |name: &str| sessions.iter().filter(|session| session.application_name == name).count();
    assert_eq!(["api", "backend", "gc", "bus"].map(count), [2, 2, 1, 1], "{sessions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_for_what_is_to_be_ready_fails_the_opening_and_leaves_nothing() {
    let server =
        TestServer::start(Server::throwaway().setting("max_connections", "6")).await.expect("a server");
    let db = server.empty().await.expect("a database");
    let wait = ConnectRetry::default().deadline(Duration::from_secs(2)).attempt(Duration::from_secs(2));
    // `instances(0)`, or the size check would refuse it before a pool connects.
    let large = warm(Options::new(config(&db)), 5).instances(0).wait(wait);

    let error = db_layer::open(large).await.expect_err("there is no room");

    // Either a pool or the bus is refused, whichever connects last.
    let failure = match &error {
        OpenError::WarmUp(cold) => cold.failure(),
        OpenError::Bus(BusError::Listen { failure, .. }) => Some(failure),
        _ => None,
    };
    assert!(matches!(failure, Some(ConnectFailure::NoRoom(_))), "{error}");
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

/// Sessions cost more than the statements of opening: one for the checks and migrations, two for the bus, one control
/// connection for each pool, one for the pulse, and no other.
#[db_testkit::test]
async fn opening_takes_one_session_beside_those_that_it_keeps(db: TestDb) {
    drop(db_layer::open(options(&db).await).await.expect("migrated"));
    let proxy = Proxy::start(&db).expect("a proxy");
    let through = db_layer::Config::from_url(&proxy.url()).expect("the proxy's address");
    let again = warm(options(&db).await.database(through), 2);

    let layer = db_layer::open(again).await.expect("opened");

    until("the control connections are open", async || proxy.accepted() >= 12).await;
    assert_eq!(
        proxy.accepted(),
        1 + 2 + 2 + 2 + 1 + 3 + 1,
        "the first, the bus, api, backend, gc, the pools' control connections, and the pulse"
    );
    drop(layer);
}
