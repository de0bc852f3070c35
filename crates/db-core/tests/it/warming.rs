//! Waiting until a pool has its connections open.

use std::time::{Duration, Instant};

use db_core::{Config, ConnectFailure, Pool, PoolOptions};
use db_embedded::Server;
use db_testkit::{TestDb, TestServer, poll_then_drop};

use crate::support::{Guarded, PATIENCE, config};

fn pool(config: &Config, min_idle: u32) -> Pool {
    Pool::new(config, PoolOptions::api().name("warm").min_idle(min_idle))
}

#[db_testkit::test]
async fn after_warm_up_the_min_idle_connections_are_open(db: TestDb) {
    let warm = pool(&config(&db), 3);

    warm.warm_up(PATIENCE).await.expect("warm");

    assert_eq!((warm.stats().idle, warm.stats().totals.dialled), (3, 3), "{:?}", warm.stats());
    let sessions = db.sessions().await.expect("sessions");
    assert_eq!(sessions.iter().filter(|it| it.application_name == "warm").count(), 3, "{sessions:?}");
}

#[db_testkit::test]
async fn warm_up_waits_for_no_more_connections_than_the_limit(db: TestDb) {
    let small = PoolOptions::api().max(2).min_idle(5);
    let small = Pool::new(&config(&db), small);

    small.warm_up(PATIENCE).await.expect("warm");

    assert_eq!(small.stats().idle, 2, "{:?}", small.stats());
    let none = pool(&config(&db), 0);
    none.warm_up(Duration::ZERO).await.expect("nothing to wait for");
    assert_eq!(none.stats().totals.dialled, 0);
}

#[db_testkit::test]
async fn warm_up_can_be_dropped_at_every_await(db: TestDb) {
    let warm = pool(&config(&db), 3);

    let mut polls = 0;
    while poll_then_drop(warm.warm_up(PATIENCE), polls).await.transpose().expect("warm").is_none() {
        polls += 1;
    }

    assert!(polls > 0, "warm_up was pending");
    assert_eq!((warm.stats().idle, warm.stats().totals.dialled), (3, 3), "{:?}", warm.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_at_the_deadline_says_that_the_server_has_too_few_connections() {
    let server =
        TestServer::start(Server::throwaway().setting("max_connections", "6")).await.expect("a server");
    let db = server.empty().await.expect("a database");
    let large = pool(&config(&db), 10);

    let error = large.warm_up(Duration::from_secs(2)).await.expect_err("the server has no room for ten");

    let (open, wanted) = error.open_of_wanted();
    assert!(open < 10 && wanted == 10, "{error:?}");
    assert!(matches!(error.failure(), Some(ConnectFailure::NoRoom(_))), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("pool `warm`: {open} of 10 connections (min_idle) were open after 2.0 s;"))
            && text.contains("too many clients"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_up_fails_at_once_where_waiting_cannot_help() {
    let server = Guarded::start().await;
    let wrong = pool(&server.config("app:wrong"), 2);

    let started = Instant::now();
    let error = wrong.warm_up(PATIENCE).await.expect_err("the password is wrong");

    assert!(matches!(error.failure(), Some(ConnectFailure::WrongPassword(_))), "{error:?}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    assert!(!format!("{error} {error:?}").contains(":wrong"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_the_pool_ends_warm_up() {
    // A listener that accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let config = Config::from_url(&format!("postgres://app@127.0.0.1:{port}/shop")).expect("an address");
    let pool = pool(&config, 1);
    let warming = tokio::spawn({
        let pool = pool.clone();
        async move { pool.warm_up(PATIENCE).await }
    });
    db_testkit::until("a dial has started", async || pool.stats().dialling == 1).await;

    let started = Instant::now();
    pool.close(PATIENCE).await;

    let error = warming.await.expect("no panic").expect_err("the pool is closed");
    assert!(error.to_string().ends_with("and the pool is closed"), "{error}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
}
