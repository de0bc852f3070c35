//! The server's TCP keepalive is on for every long connection, as its sockets show.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use db_embedded::Server;
use db_layer::{BusOptions, Config, Migrations, Options, PoolOptions, Topic};
use db_testkit::{TestDb, TestServer, until};
use sqlx::{ConnectOptions, Connection};

/// Shorter than the operating system's default of 7200 s, and longer than the test.
const SILENCE: Duration = Duration::from_secs(45);

/// A server of the test's own, reached by TCP.
async fn by_tcp() -> (TestServer, TestDb, Config, u16) {
    let free = TcpListener::bind("127.0.0.1:0").expect("an address").local_addr().expect("an address");
    let builder =
        Server::throwaway().setting("listen_addresses", "127.0.0.1").setting("port", free.port().to_string());
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.empty().await.expect("a database");
    let hba = server.embedded().expect("one of its own").data_dir().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).expect("the rules");
    std::fs::write(&hba, format!("{rules}host all all 127.0.0.1/32 trust\n")).expect("a rule");
    sqlx::raw_sql("select pg_reload_conf()").execute(&db.pool()).await.expect("read again");
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", free.port(), db.name());
    let config = Config::from_url(&url).expect("an address");
    until("the rule is in force", async || config.as_sqlx().connect().await.is_ok()).await;
    (server, db, config, free.port())
}

/// For each session that came by TCP, by its name: the seconds of silence after which the server sends a keepalive probe, as
/// far as the kernel shows it now.
async fn asked_after(db: &TestDb, port: u16) -> BTreeMap<String, Option<u64>> {
    let sessions: Vec<(String, i32)> = sqlx::query_as(
        "select application_name, client_port from pg_stat_activity
         where datname = current_database() and client_port > 0",
    )
    .fetch_all(&db.pool())
    .await
    .expect("sessions");
    // Linux, Documentation/networking/proc_net_tcp.rst: local and remote address, …, `tr:tm->when`, where 02 is the timer for
    // keepalive, in hundredths of seconds.
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let sockets: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let asked = |client: i32| {
        let row = sockets.iter().find(|row| {
            row[1].ends_with(&format!(":{port:04X}")) && row[2].ends_with(&format!(":{client:04X}"))
        })?;
        let (_, when) = row[5].split_once(':').filter(|(timer, _)| *timer == "02")?;
        Some(u64::from_str_radix(when, 16).expect("hexadecimal") / 100)
    };
    sessions.into_iter().map(|(name, client)| (name, asked(client))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_long_connection_is_kept_alive_by_the_server() {
    let (_server, db, config, port) = by_tcp().await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("1_waits.up.sql"), "select pg_advisory_xact_lock(4711)")
        .expect("written");
    let migrations = Migrations::from_dir(folder.path()).await.expect("migrations");
    let mut blocker = db.options().application_name("db-testkit").connect().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(4711)").execute(&mut blocker).await.expect("locked");
    let migrating = tokio::spawn({
        let config = config.clone().with_application_name("migrations");
        async move { migrations.up(&config).await }
    });
    let layer = db_layer::open(
        Options::new(config)
            .api(PoolOptions::api().keepalive(SILENCE))
            .bus(BusOptions::default().heartbeat(SILENCE)),
    )
    .await
    .expect("opened");
    let shown: String = sqlx::query_scalar("select current_setting('tcp_keepalives_idle')")
        .fetch_one(layer.api())
        .await
        .expect("an answer");
    assert_eq!(shown, SILENCE.as_secs().to_string());
    layer.bus().notify(&Topic::new("t").expect("a topic")).await.expect("sent");
    // Dropped while it runs, so that the pool has to cancel it.
    let sleep = sqlx::query("select pg_sleep(600)").execute(layer.api());
    tokio::select! {
        _ = sleep => unreachable!("it takes ten minutes"),
        _ = db.until_sessions("it sleeps", |all| all.iter().any(|it| it.query.contains("pg_sleep"))) => {}
    }

    let names = ["api", "api control", "bus", "migrations", "notifier"];
    let mut last = BTreeMap::new();
    let limit = tokio::time::timeout(crate::PATIENCE, async {
        loop {
            last = asked_after(&db, port).await;
            if names
                .iter()
                .all(|name| matches!(last.get(*name), Some(Some(after)) if *after <= SILENCE.as_secs()))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let kept = limit.await.is_ok();
    assert!(kept, "each of {names:?} within {SILENCE:?}: {last:?}");

    blocker.close().await.expect("closed");
    migrating.await.expect("no panic").expect("migrated");
    assert!(layer.shutdown(crate::PATIENCE).await.is_clean());
}
