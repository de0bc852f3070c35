//! `/health/live` and `/health/ready`.

use std::time::Duration;

use db_layer::encryption::{Columns, Key, KeyType, Keyring, Sealed};
use db_layer::{AtOpen, KeyOptions, Options};
use db_testkit::TestDb;
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
    let answer = client().get(format!("{}/health/ready", served.address)).send().await.expect("an answer");
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
async fn a_service_that_lost_its_database_is_alive_and_not_ready(db: TestDb) {
    let layer = open(&db).await;
    let served = serve(db_axum::health::routes(layer.clone())).await;
    let ask = async |path: &str| {
        let answer = client().get(format!("{}{path}", served.address)).send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.expect("JSON"))
    };

    let (status, body) = ask("/health/ready").await;
    assert_eq!((status, &body["status"]), (200, &Value::from("ready")));
    assert!(body["database"]["latency_ms"].is_number(), "{body}");
    assert_eq!(body["pools"]["api"]["max"], 10);
    assert_eq!(body["bus"]["connected"], true);
    assert_eq!((&body["bus"]["trouble"], &body["bus"]["pending"]), (&Value::Null, &Value::from(0)));
    assert!(body["bus"]["connected_for_s"].is_u64(), "{body}");

    layer.shutdown(Duration::from_secs(20)).await;

    let (status, body) = ask("/health/ready").await;
    assert_eq!((status, &body["status"]), (503, &Value::from("not ready")));
    let (status, body) = ask("/health/live").await;
    assert_eq!((status, &body["status"]), (200, &Value::from("alive")));
}
