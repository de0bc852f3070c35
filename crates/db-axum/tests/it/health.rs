//! The routes about health.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use db_axum::Starting;
use db_axum::health::HealthOptions;
use db_layer::encryption::{Columns, Key, KeyType, Keyring, Sealed};
use db_layer::{AtOpen, KeyOptions, Options, PoolOptions, StartupPhase};
use db_testkit::{TestDb, until};
use futures_util::TryFutureExt as _;
use harness::Log;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{client, open, serve};

/// What an on-call person looks at: which key is wrong, and how many values it concerns.
#[db_testkit::test]
async fn a_wrong_key_is_found_in_the_health_of_the_service_and_one_line_of_its_log(db: TestDb) {
    let log = Log::of_this_process("info");
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
    // They wait in any order, so each gives back by itself.
    let callers: JoinSet<_> = (0..11).map(|_| layer.api().acquire().map_ok(drop)).collect();
    until("all wait", async || layer.health().api.waiting == 11).await;

    assert_eq!(status("/health/db").await, (503, json!("degraded")));
    assert_eq!(status("/health/ready").await, (200, json!("ready")));

    drop(held);
    for caller in callers.join_all().await {
        caller.expect("a connection");
    }
    assert_eq!(status("/health/db").await, (200, json!("healthy")));
}

#[db_testkit::test]
async fn a_long_queue_may_be_told_with_200(db: TestDb) {
    let config = db.url().parse().expect("an address");
    let layer = db_layer::open(Options::new(config).api(PoolOptions::api().max(1))).await.expect("opened");
    let options = HealthOptions::default().degraded_is_ok(true);
    let served = serve(db_axum::health::routes_with(layer.clone(), options)).await;
    let _held = layer.api().acquire().await.expect("a connection");
    let callers: Vec<_> =
        (0..11).map(|_| AbortOnDropHandle::new(tokio::spawn(layer.api().acquire()))).collect();
    until("all wait", async || layer.health().api.waiting == 11).await;

    let answer = client().get(format!("{}/health/db", served.address)).send().await.expect("an answer");

    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.expect("JSON")["status"], "degraded");
    drop(callers);
    layer.shutdown(Duration::ZERO).await;
    let answer = client().get(format!("{}/health/db", served.address)).send().await.expect("an answer");
    assert_eq!(answer.status(), 503, "unhealthy all the same");
}

#[db_testkit::test]
async fn probes_are_answered_before_the_database_is_open(db: TestDb) {
    let mut other = db.pool().acquire().await.expect("a connection");
    sqlx::migrate::Migrate::lock(&mut *other).await.expect("sqlx's lock");
    let options = crate::support::options(&db).await;
    let (startup, starting) = (options.startup(), Starting::new(options.startup()));
    let served = serve(starting.router()).await;
    let ask = async |path: &str| {
        let answer = client().get(format!("{}{path}", served.address)).send().await.expect("an answer");
        let retry_after = answer.headers().get("retry-after").map(|it| it.to_str().expect("text").to_owned());
        (answer.status().as_u16(), retry_after, answer.text().await.expect("text"))
    };
    let (status, _, body) = ask("/health/startup").await;
    assert_eq!((status, body.contains("not being opened yet")), (503, true), "{body}");

    let opening = tokio::spawn(db_layer::open(options));
    until("it migrates", async || startup.phase() == StartupPhase::Migrating).await;

    let (status, _, body) = ask("/health/startup").await;
    let expected = json!({ "status": "starting", "reason": "the database is being migrated" });
    assert_eq!((status, serde_json::from_str::<Value>(&body).expect("JSON")), (503, expected));
    for path in ["/health", "/health/ready"] {
        assert_eq!(ask(path).await.0, 503, "{path}");
    }
    let (status, _, body) = ask("/health/db").await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &body["status"], &body["total"]), (503, &json!("unhealthy"), &json!(0)));
    assert_eq!(ask("/health/live").await.0, 200);
    let (status, retry_after, body) = ask("/shops").await;
    assert_eq!((status, retry_after.as_deref()), (503, Some("1")));
    assert!(body.contains("The service is starting."), "{body}");

    sqlx::migrate::Migrate::unlock(&mut *other).await.expect("unlocked");
    let layer = opening.await.expect("no panic").expect("opened");
    assert!(startup.is_over());
    assert_eq!(ask("/health/startup").await.0, 503, "the service does not serve yet");
    let shops = Router::new().route("/shops", get(async || "shops"));
    starting.started(shops.merge(db_axum::health::routes(layer)));

    let (status, _, body) = ask("/health/startup").await;
    let expected = json!({ "status": "started", "reason": null });
    assert_eq!((status, serde_json::from_str::<Value>(&body).expect("JSON")), (200, expected));
    assert_eq!(ask("/health/ready").await.0, 200);
    assert_eq!(ask("/shops").await, (200, None, "shops".to_owned()));
    assert_eq!(ask("/nothing").await.0, 404);
}
