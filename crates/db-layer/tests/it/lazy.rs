//! Opening without connecting.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use db_layer::db_core::Pool;
use db_layer::db_notify::{Delivery, GapReason};
use db_layer::{Config, Db, Migrations, OpenError, Options, PoolOptions, Topic};
use db_testkit::{Proxy, TestDb, TestServer, poll_then_drop, until};
use sqlx::{ConnectOptions, Connection};
use tokio::task::JoinSet;

use crate::{PATIENCE, config};

/// Opens, and must be ready at the first poll.
async fn at_once(options: Options) -> Db {
    poll_then_drop(Box::pin(db_layer::open(options)), 1)
        .await
        .expect("ready at the first poll")
        .expect("opened")
}

/// A pool that would open connections ahead of any request, with a keeper that runs every 20 ms.
fn eager(name: &str) -> PoolOptions {
    PoolOptions::named(name).min_idle(1).keepalive(Duration::from_millis(80))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_after_the_opening_is_there_at_the_first_use() {
    let folder = tempfile::tempdir().expect("a folder");
    // When the test runs as root, the server runs as another user, who must be able to enter the folder.
    set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("permissions");
    let data = folder.path().join("server");
    let address = format!("postgres://postgres@/postgres?host={}", data.join("run").display());
    let config = Config::from_url(&address).expect("an address");
    let options = Options::new(config.clone()).pool(eager("lazy")).lazy();

    let layer = at_once(options).await;

    let server = TestServer::start(db_embedded::Server::kept(data)).await.expect("a server");
    server.until_up().await.expect("a server that is up");
    let mut observer =
        config.clone().with_application_name("observer").as_sqlx().connect().await.expect("in");
    let mut sessions = async || -> Vec<String> {
        sqlx::query_scalar(
            "select application_name from pg_stat_activity
             where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'db-testkit'
             order by 1",
        )
        .fetch_all(&mut observer)
        .await
        .expect("sessions")
    };
    // An ordinary pool of the same kind, to know that the keeper has had time to connect.
    let ordinary = Pool::new(&config, eager("ordinary"));
    until("the ordinary pool is open", async || ordinary.stats().idle == 1).await;
    until("its control connection is open", async || sessions().await == ["ordinary", "ordinary control"])
        .await;
    assert!(ordinary.close(PATIENCE).await.is_clean());

    let one: i32 = sqlx::query_scalar("select 1").fetch_one(layer.api()).await.expect("an answer");
    assert_eq!(one, 1);
    until("no other session is open", async || sessions().await == ["api", "api control"]).await;
    assert!(layer.shutdown(PATIENCE).await.is_clean());
    observer.close().await.expect("closed");
}

#[db_testkit::test]
async fn many_first_users_share_one_bus_connection_and_open_no_more_than_they_need(db: TestDb) {
    const USERS: usize = 6;
    let layer = at_once(Options::new(config(&db)).lazy()).await;
    let topic = Topic::new("t").expect("a topic");
    assert_eq!(db.sessions().await.expect("sessions"), []);

    let mut users = JoinSet::new();
    for _ in 0..USERS {
        let (layer, topic) = (layer.clone(), topic.clone());
        users.spawn(async move {
            let mut subscription = layer.bus().subscribe(&topic, 10);
            let one: i32 = sqlx::query_scalar("select 1").fetch_one(layer.api()).await.expect("an answer");
            let first =
                tokio::time::timeout(PATIENCE, subscription.recv()).await.expect("in time").expect("open");
            (one, first)
        });
    }
    for (one, first) in users.join_all().await {
        assert_eq!(one, 1);
        assert!(matches!(&first, Delivery::Gap(gap) if gap.reason == GapReason::Started), "{first:?}");
    }

    let sessions = db.sessions().await.expect("sessions");
    let of = |name: &str| sessions.iter().filter(|session| session.application_name == name).count();
    // The bus has verified delivery to itself, and keeps the session that sent the notification.
    assert_eq!((of("bus"), of("backend"), of("notifier")), (1, 0, 1), "{sessions:?}");
    assert!((1..=USERS).contains(&of("api")), "{sessions:?}");
    assert!(layer.shutdown(PATIENCE).await.is_clean());
}

#[db_testkit::test]
async fn a_lazy_pool_keeps_its_idle_connections_once_it_was_used(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("an address");
    let layer = at_once(Options::new(config).pool(eager("gc").min_idle(3)).lazy()).await;
    let gc = layer.pool("gc").expect("a pool");
    gc.pool().set_limits(gc.pool().limits());
    assert_eq!(proxy.accepted(), 0);

    gc.pool().ping().await.expect("a ping");

    until("its idle connections are there", async || gc.pool().stats().idle == 3).await;
}

#[db_testkit::test]
async fn mistakes_are_still_found_at_the_opening(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("an address");
    let lazy = || Options::new(config.clone()).lazy();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations");
    let migrations = Migrations::from_dir(folder).await.expect("migrations");

    let refused = db_layer::open(lazy().migrations(migrations)).await.expect_err("nothing to migrate on");
    assert!(matches!(refused, OpenError::LazyMigrations), "{refused:?}");
    assert!(refused.to_string().contains("beforehand"), "{refused}");
    assert!(matches!(db_layer::open(lazy().namespace("")).await, Err(OpenError::Bus(_))));
    assert_eq!(proxy.accepted(), 0);
}
