//! `/health/live` and `/health/ready`.

use std::time::Duration;

use db_testkit::TestDb;
use serde_json::Value;

use crate::support::{client, open, serve};

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
