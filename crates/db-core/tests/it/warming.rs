//! Waiting until a pool has its connections ready.

use std::time::{Duration, Instant};

use db_core::{Config, ConnectFailure, Pool, PoolOptions};
use db_embedded::Server;
use db_testkit::{TestDb, TestServer, poll_then_drop};

use crate::support::{Guarded, PATIENCE, config};

fn pool(config: &Config, min_idle: u32) -> Pool {
    Pool::new(config, PoolOptions::api().name("warm").min_idle(min_idle))
}

#[db_testkit::test]
async fn what_a_pool_keeps_ready_is_there_when_it_is_warm(db: TestDb) {
    let warm = pool(&config(&db), 3);

    warm.warm_up(PATIENCE).await.expect("warm");

    assert_eq!((warm.stats().idle, warm.stats().totals.dialled), (3, 3), "{:?}", warm.stats());
    let sessions = db.sessions().await.expect("sessions");
    assert_eq!(sessions.iter().filter(|it| it.application_name == "warm").count(), 3, "{sessions:?}");
}

#[db_testkit::test]
async fn a_pool_is_warm_with_what_its_limits_let_it_have(db: TestDb) {
    let small = PoolOptions::api().max(2).min_idle(5);
    let small = Pool::new(&config(&db), small);

    small.warm_up(PATIENCE).await.expect("warm");

    assert_eq!(small.stats().idle, 2, "{:?}", small.stats());
    let none = pool(&config(&db), 0);
    none.warm_up(Duration::ZERO).await.expect("there is nothing to wait for");
    assert_eq!(none.stats().totals.dialled, 0);
}

#[db_testkit::test]
async fn warming_up_may_be_dropped_wherever_it_waits(db: TestDb) {
    let warm = pool(&config(&db), 3);

    let mut polls = 0;
    while poll_then_drop(warm.warm_up(PATIENCE), polls).await.transpose().expect("warm").is_none() {
        polls += 1;
    }

    assert!(polls > 0, "there was something to wait for");
    assert_eq!((warm.stats().idle, warm.stats().totals.dialled), (3, 3), "{:?}", warm.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_too_few_connections_is_named_at_the_deadline() {
    let server =
        TestServer::start(Server::throwaway().setting("max_connections", "6")).await.expect("a server");
    let db = server.empty().await.expect("a database");
    let large = pool(&config(&db), 10);

    let error = large.warm_up(Duration::from_secs(2)).await.expect_err("there is no room for ten");

    let (open, wanted) = error.open_of_wanted();
    assert!(open < 10 && wanted == 10, "{error:?}");
    assert!(matches!(error.failure(), Some(ConnectFailure::NotReady(_))), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("pool `warm`: {open} of 10 connections (min_idle) were open after 2.0 s;"))
            && text.contains("too many clients"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waiting_cannot_mend_is_not_waited_for() {
    let server = Guarded::start().await;
    let wrong = pool(&server.config("app:wrong"), 2);

    let started = Instant::now();
    let error = wrong.warm_up(PATIENCE).await.expect_err("the password is wrong");

    assert!(matches!(error.failure(), Some(ConnectFailure::WrongPassword(_))), "{error:?}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    assert!(!format!("{error} {error:?}").contains(":wrong"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_closed_keeps_nobody_waiting() {
    // Where connections are made and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let config = Config::from_url(&format!("postgres://app@127.0.0.1:{port}/shop")).expect("an address");
    let pool = pool(&config, 1);
    let warming = tokio::spawn({
        let pool = pool.clone();
        async move { pool.warm_up(PATIENCE).await }
    });
    db_testkit::until("it dials", async || pool.stats().dialling == 1).await;

    let started = Instant::now();
    pool.close(PATIENCE).await;

    let error = warming.await.expect("no panic").expect_err("it will never be warm");
    assert!(error.to_string().ends_with("and the pool was closed"), "{error}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
}
