//! `serve --rate-limit`, with and without Redis.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use db_testkit::{Redis, TestDb, until};
use serde_json::json;

use crate::serving::{Served, client, serve, serve_by};
use crate::support::Home;

/// How many of these requests of an address pass. Others are refused for at most a second.
async fn passes(served: &Served, address: &str, requests: usize) -> usize {
    let client = client();
    let asked = (0..requests).map(async |_| {
        let request = client.get(format!("{}/api/builds", served.address)).header("x-forwarded-for", address);
        request.send().await.expect("an answer")
    });
    let answers = futures_util::future::join_all(asked).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status() == 429).collect();
    assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status().as_u16())), "{answers:?}");
    assert!(refused.iter().all(|answer| answer.headers()["retry-after"] == "1"), "{refused:?}");
    answers.len() - refused.len()
}

#[db_testkit::test]
async fn an_address_is_limited_and_probes_are_not(db: TestDb) {
    let served = serve(&Home::on(&db), &["--rate-limit", "5", "--proxies", "1"]);
    let began = Instant::now();

    let [one, other] = [passes(&served, "192.0.2.1", 200).await, passes(&served, "192.0.2.2", 3).await];

    // What came free meanwhile, and one for rounding.
    let most = 5 + 1 + usize::try_from(began.elapsed().as_millis() / 200).expect("a time");
    assert!((5..=most).contains(&one), "{one} of {most}");
    assert_eq!(other, 3);
    for _ in 0..20 {
        assert_eq!(served.get("/health/ready").await.0, 200);
    }
    let answer = client().get(format!("{}/", served.address)).send().await.expect("an answer");
    assert_eq!(answer.headers()["ratelimit-policy"], r#""requests";q=5;w=1"#);
}

fn keys(redis: &Redis) -> String {
    let mut socket = UnixStream::connect(redis.socket()).expect("a connection");
    socket.write_all(b"KEYS *\r\nQUIT\r\n").expect("sent");
    let mut said = String::new();
    socket.read_to_string(&mut said).expect("an answer");
    said
}

#[db_testkit::test]
async fn with_redis_requests_are_counted_there_and_monitoring_shows_it(db: TestDb) {
    let redis = Redis::start().await.expect("a Redis");
    let home = Home::on(&db);
    let mut command = home.buildwatch([
        "serve",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--rate-limit",
        "5",
        "--proxies",
        "1",
    ]);
    command.env("REDIS_URL", redis.url());
    let served = serve_by(command);

    // A key goes by itself within a second, and a machine that is busy may be late for Redis.
    until("it is counted in Redis", async || {
        passes(&served, "192.0.2.7", 20).await;
        let keys = keys(&redis);
        keys.contains(":rate:requests:") && keys.contains("{192.0.2.7}:0\r\n")
    })
    .await;
    let is_known = async || served.json("/monitoring/connections/health").await["redis"].clone();
    let ready = json!({ "available": true, "connected": true, "status": "ready" });
    until("monitoring shows it", async || is_known().await == ready).await;
    let pool = served.json("/monitoring/connections/pool").await["redis"].clone();
    assert_eq!(pool, json!({ "available": true, "connected": true }));
    assert!(served.json("/health").await["redis"]["memory_bytes"].is_u64());
    let metrics = served.get("/metrics").await.1;
    assert!(
        metrics.contains("db_layer_redis_connected{namespace=")
            && metrics.contains("db_layer_redis_memory_bytes{"),
        "{metrics}"
    );

    redis.kill().expect("killed");
    until("monitoring shows that it is away", async || is_known().await["status"] == "reconnecting").await;
    assert!(passes(&served, "192.0.2.8", 20).await >= 5, "it goes on by itself");
}
