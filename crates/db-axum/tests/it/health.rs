//! The routes about health.

use std::time::Duration;

use db_layer::encryption::{Columns, Key, KeyType, Keyring, Sealed};
use db_layer::{AtOpen, KeyOptions, Options, PoolOptions};
use db_testkit::{TestDb, until};
use harness::Log;
use serde_json::{Value, json};

use crate::support::{client, open, serve};

/// What an on-call person looks at: which key is wrong, and how many values it concerns.
#[db_testkit::test]
async fn a_wrong_key_is_found_in_the_health_of_the_service_and_one_line_of_its_log(db: TestDb) {
    let log = Log::of_this_process("error");
    let columns = Columns::default();
    let iban = columns.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();
    let (right, wrong) = (Key::generate().expect("a key"), Key::generate().expect("a key"));
    let holding = KeyOptions::default().recorded(false);
    sqlx::raw_sql("create table customers (id bigint primary key, iban bytea)")
        .execute(&db.pool())
        .await
        .expect("a table");
    let options = Options::new(db.url().parse().expect("an address"))
        .columns(columns)
        .holding(holding)
        .rekey(AtOpen::Warn);
    let layer = db_layer::open(options.keys(right.clone())).await.expect("opened");
    let served = serve(db_axum::health::routes(layer.clone())).await;
    let sealed = [iban.seal(1, &"DE02".to_owned()).expect("sealed"), foreign(&wrong, 2), foreign(&wrong, 3)];

    let plain: Vec<_> = (1..).zip(&sealed).map(|(id, sealed)| iban.unseal(id, sealed).is_ok()).collect();

    assert_eq!(plain, [true, false, false]);
    let answer = client().get(format!("{}/health", served.address)).send().await.expect("an answer");
    let sealing = answer.json::<Value>().await.expect("JSON")["sealing"].take();
    let (right, wrong) = (right.id().to_string(), wrong.id().to_string());
    assert_eq!(
        sealing,
        json!({
            "primary": right, "keys": [right], "candidate": null, "waits_for": 0, "alarm": false, "unknown": [wrong],
            "left_to_rekey": null,
            "sealed": 1, "unsealed": 1,
            "failed": { "keys_away": 0, "unknown_key": 2, "not_authentic": 0, "unreadable": 0, "not_sealed": 0 },
        })
    );
    assert_eq!(log.count(&["ERROR", &wrong, "customers.iban of row 2"]), 1);
    assert_eq!(log.count(&[&wrong, "row 3"]), 0, "one line is enough");
}

/// A value that a process with another key has sealed.
fn foreign(key: &Key, id: i64) -> Sealed<String> {
    let columns = Columns::default();
    let iban = columns.declare("customers", "iban").key("id", KeyType::BigInt).text();
    columns.unlock(std::sync::Arc::new(Keyring::new(key))).expect("no keys yet");
    iban.seal(id, &"DE02".to_owned()).expect("sealed")
}

#[db_testkit::test]
async fn a_service_that_is_open_is_ready_and_one_that_is_closed_is_alive_and_not_ready(db: TestDb) {
    let layer = open(&db).await;
    let served = serve(db_axum::health::routes(layer.clone())).await;
    let ask = async |path: &str, accept: &str| {
        let request = client().get(format!("{}{path}", served.address)).header("accept", accept);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.headers()["cache-control"], "no-store", "{path}");
        let media_type = answer.headers()["content-type"].to_str().expect("text").to_owned();
        (answer.status().as_u16(), media_type, answer.json::<Value>().await.expect("JSON"))
    };
    let get = async |path: &str| {
        let (status, _, body) = ask(path, "*/*").await;
        (status, body)
    };
    until("the database was asked", async || get("/health").await.1["database"]["latency_ms"].is_number())
        .await;

    assert_eq!(get("/health/ready").await, (200, json!({ "status": "ready", "reason": null })));
    let (status, body) = get("/health").await;
    assert_eq!((status, &body["status"]), (200, &Value::from("ready")));
    assert_eq!(body["pools"]["api"]["max"], 10);
    assert_eq!(body["bus"]["connected"], true);
    assert_eq!((&body["bus"]["trouble"], &body["bus"]["pending"]), (&Value::Null, &Value::from(0)));
    assert!(body["bus"]["connected_for_s"].is_u64(), "{body}");
    let (status, body) = get("/health/db").await;
    assert_eq!((status, &body["status"], &body["waiting"]), (200, &json!("healthy"), &json!(0)));
    assert!(body["latency"].is_number() && body["total"].is_number() && body["idle"].is_number(), "{body}");
    let passes = (200, "application/health+json".to_owned(), json!({ "status": "pass" }));
    assert_eq!(ask("/health/ready", "text/html, application/health+json;q=0.9").await, passes);

    layer.shutdown(Duration::from_secs(20)).await;

    let reason = "the service is shutting down";
    assert_eq!(get("/health/ready").await, (503, json!({ "status": "not ready", "reason": reason })));
    assert_eq!(get("/health").await.0, 503);
    assert_eq!(get("/health/live").await, (200, json!({ "status": "alive" })));
    let (status, body) = get("/health/db").await;
    assert_eq!((status, &body["status"]), (503, &json!("unhealthy")));
    let fails = (503, "application/health+json".to_owned(), json!({ "status": "fail", "output": reason }));
    assert_eq!(ask("/health/ready", "application/health+json").await, fails);
}

#[db_testkit::test]
async fn a_long_queue_is_degraded_and_still_ready(db: TestDb) {
    let config = db.url().parse().expect("an address");
    let api = PoolOptions::api().max(1);
    let layer = db_layer::open(Options::new(config).api(api)).await.expect("opened");
    let served = serve(db_axum::health::routes(layer.clone())).await;
    let status = async |path: &str| {
        let answer = client().get(format!("{}{path}", served.address)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON")["status"].take())
    };
    let held = layer.api().acquire().await.expect("a connection");
    let callers: Vec<_> = (0..11).map(|_| tokio::spawn(layer.api().acquire())).collect();
    until("all wait", async || layer.health().api.waiting == 11).await;

    assert_eq!(status("/health/db").await, (503, json!("degraded")));
    assert_eq!(status("/health/ready").await, (200, json!("ready")));

    drop(held);
    for caller in callers {
        drop(caller.await.expect("no panic").expect("a connection"));
    }
    assert_eq!(status("/health/db").await, (200, json!("healthy")));
}
