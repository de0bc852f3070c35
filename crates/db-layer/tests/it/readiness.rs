//! Whether requests can be served: a busy service is ready, and one whose database or pool is stuck is not.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use db_layer::{DatabaseHealth, Db, Health, NotReady, Options, PoolOptions};
use db_testkit::{TestDb, TestServer, until};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::sizing::small;
use crate::{PATIENCE, config, open};

/// With this many connections in the API pool.
async fn with(db: &TestDb, connections: u32) -> Db {
    let api = PoolOptions::api().max(connections).acquire_timeout(Duration::from_mins(1));
    db_layer::open(Options::new(config(db)).api(api)).await.expect("an open database")
}

/// Waits for looks at the database, and holds that this is so meanwhile. Two of them do not take the same time to the nanosecond.
async fn for_looks(layer: &Db, number: usize, is_so: impl Fn(&Health) -> bool) {
    let mut seen = Vec::new();
    while seen.len() < number {
        until("the next look", async || {
            let health = layer.health();
            assert!(is_so(&health), "{health:?}");
            match health.database {
                DatabaseHealth::Answers { within } if seen.last() != Some(&within) => {
                    seen.push(within);
                    true
                }
                _ => false,
            }
        })
        .await;
    }
}

#[db_testkit::test]
async fn a_service_whose_connections_are_all_in_use_is_ready(db: TestDb) {
    let layer = with(&db, 4).await;
    let ends = Arc::<AtomicBool>::default();
    let mut callers = JoinSet::new();
    for _ in 0..40 {
        let (layer, ends) = (layer.clone(), Arc::clone(&ends));
        callers.spawn(async move {
            while !ends.load(Relaxed) {
                sqlx::query("select pg_sleep(0.25)").execute(layer.api()).await.expect("served");
            }
        });
    }
    until("callers wait", async || layer.health().api.waiting > 30).await;

    for_looks(&layer, 6, Health::is_ready).await;

    ends.store(true, Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.expect("no panic");
    }
    assert!(layer.shutdown(PATIENCE).await.is_clean());
}

#[db_testkit::test]
async fn a_pool_that_gives_nothing_back_is_stuck_after_ten_seconds_and_not_before(db: TestDb) {
    let layer = with(&db, 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(layer.api().acquire().await.expect("a connection"));
    }
    // Full alone is busy.
    for_looks(&layer, 7, Health::is_ready).await;

    let began = Instant::now();
    let waiter = tokio::spawn({
        let api = layer.api();
        async move { api.acquire().await.map(drop) }
    });
    until("it is stuck", async || layer.health().not_ready == Some(NotReady::Stuck)).await;
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());

    held.clear();
    waiter.await.expect("no panic").expect("it got a connection");
    until("it is ready again", async || layer.health().is_ready()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_frozen_is_found_and_one_that_is_thawed_is_ready_again() {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let layer = open(&db).await;
    until("it was asked", async || matches!(layer.health().database, DatabaseHealth::Answers { .. })).await;
    let mut pids: Vec<i32> =
        sqlx::query_scalar("select pid from pg_stat_activity where datname = current_database()")
            .fetch_all(layer.api())
            .await
            .expect("process ids");
    let postmaster = server.embedded().expect("one of its own").postmaster_pid().expect("a process id");
    // The postmaster accepts new connections, so it must be stopped, too.
    pids.push(i32::try_from(postmaster).expect("a process id"));
    let signal = |name: &str| {
        let pids = pids.iter().map(ToString::to_string);
        let status = Command::new("kill").args(["-s", name]).args(pids).status();
        assert!(status.expect("kill runs").success(), "{name}");
    };

    signal("STOP");
    until("it is not ready", async || layer.health().not_ready == Some(NotReady::Database)).await;
    let frozen = layer.health();
    signal("CONT");

    assert!(matches!(frozen.database, DatabaseHealth::Fails { .. }) && !frozen.is_ready(), "{frozen:?}");
    until("it is ready again", async || layer.health().is_ready()).await;
    assert!(layer.shutdown(PATIENCE).await.is_clean());
    assert_eq!(layer.health().not_ready, Some(NotReady::Closing));
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

/// It answers, though with a refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_for_another_session_is_one_that_answers() {
    let (_server, db) = small(&[("max_connections", "12")]).await;
    let options = Options::new(config(&db)).instances(0);
    let layer = db_layer::open(options).await.expect("an open database");
    until("it was asked", async || matches!(layer.health().database, DatabaseHealth::Answers { .. })).await;
    let end_it =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pulse'";
    let mut sessions = vec![PgConnection::connect_with(&db.options()).await.expect("a connection")];
    // Until nothing is left that could become its session.
    loop {
        while let Ok(session) = PgConnection::connect_with(&db.options()).await {
            sessions.push(session);
        }
        let ended: i64 = sqlx::query_scalar(end_it).fetch_one(&mut sessions[0]).await.expect("a count");
        if ended == 0 {
            break;
        }
    }

    for_looks(&layer, 5, Health::is_ready).await;
    let ended: i64 = sqlx::query_scalar(end_it).fetch_one(&mut sessions[0]).await.expect("a count");
    assert_eq!(ended, 0, "it had no session");
}

#[db_testkit::test]
async fn a_database_that_is_opened_lazily_is_not_asked_before_it_is_used(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db)).lazy()).await.expect("opened");
    // Another one of the same process, to know that there was time for a look.
    let other = TestDb::empty().await.expect("a database");
    for_looks(&open(&other).await, 3, Health::is_ready).await;
    assert_eq!(db.sessions().await.expect("sessions"), []);
    assert!(layer.health().is_ready() && matches!(layer.health().database, DatabaseHealth::NotAsked));

    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");

    until("it is asked", async || matches!(layer.health().database, DatabaseHealth::Answers { .. })).await;
}

#[db_testkit::test]
async fn the_look_ends_with_its_database(db: TestDb) {
    let layer = open(&db).await;
    let looks = |all: &[db_testkit::Session]| all.iter().any(|it| it.application_name == "pulse");
    db.until_sessions("it looks", looks).await;

    drop(layer);

    db.until_sessions("none is left", <[_]>::is_empty).await;
}
