//! What clients are told of requests that cannot be read, and of which request it was.

use std::collections::HashMap;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use db_axum::{Json, Path, Query, Result, no_such_address, no_such_method, request_ids};
use harness::Log;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Served, client, serve};

#[derive(Deserialize)]
struct Order {
    item: i64,
}

async fn order(Json(order): Json<Order>) -> Json<i64> {
    Json(order.item)
}

async fn show(Path(id): Path<i64>, Query(order): Query<Order>) -> Result<Json<i64>> {
    if id == 0 {
        return Err(sqlx::Error::PoolClosed.into());
    }
    Ok(Json(id + order.item))
}

/// A layer that compresses looks like this to those around it.
async fn compressed(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    answer.headers_mut().insert("content-encoding", HeaderValue::from_static("gzip"));
    answer
}

#[tokio::test]
async fn what_another_layer_has_encoded_is_left_alone() {
    let routes =
        Router::new().fallback(no_such_address).layer(from_fn(compressed)).layer(from_fn(request_ids));
    let served = serve(routes).await;

    let answer = client().get(&served.address).send().await.expect("an answer");

    assert!(answer.headers().contains_key("x-request-id"));
    let body = answer.text().await.expect("a text");
    assert!(body.contains("no-such-address") && !body.contains("instance"), "{body}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_written_is_a_problem() {
    let keys: HashMap<(i32, i32), i32> = HashMap::from([((1, 2), 3)]);
    let routes = Router::new().route("/", get(async move || Json(keys.clone())));
    let served = serve(routes.layer(from_fn(request_ids))).await;

    let Answer { status, body, .. } = ask(client().get(&served.address)).await;

    assert_eq!((status, &body["type"]), (500, &json!("urn:db-axum:internal")));
    assert!(body["detail"].is_null(), "{body}");
}

async fn service() -> Served {
    let routes = Router::new()
        .route("/orders", post(order))
        .route("/orders/{id}", get(show))
        // No parameter is in its path: the program's mistake.
        .route("/wrong", get(async |Path(id): Path<i64>| Json(id)))
        .fallback(no_such_address)
        .method_not_allowed_fallback(no_such_method);
    serve(routes.layer(from_fn(request_ids))).await
}

struct Answer {
    status: u16,
    id: String,
    allow: Option<String>,
    body: Value,
}

async fn ask(request: reqwest::RequestBuilder) -> Answer {
    let answer = request.send().await.expect("an answer");
    let header = |name: &str| answer.headers().get(name).map(|it| it.to_str().expect("text").to_owned());
    let (id, allow) = (header("x-request-id").expect("an id"), header("allow"));
    let status = answer.status().as_u16();
    if status >= 400 {
        assert_eq!(header("content-type").as_deref(), Some("application/problem+json"));
    }
    Answer { status, id, allow, body: answer.json().await.expect("JSON") }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_problem_and_so_is_what_is_not_there() {
    let served = service().await;
    let at = |path: &str| format!("{}{path}", served.address);
    let json = |body: &str| {
        client().post(at("/orders")).header("content-type", "application/json").body(body.to_owned())
    };

    assert_eq!(ask(json(r#"{"item": 7}"#)).await.body, 7);
    assert_eq!(ask(client().get(at("/orders/1?item=2"))).await.body, 3);
    let bad = "urn:db-axum:bad-request";
    for (request, status, kind) in [
        (json("{"), 400, bad),
        (json(r#"{"item": "seven"}"#), 422, bad),
        (json(r#"{"item": 7.5}"#), 422, bad),
        (json(&format!("\"{}\"", "x".repeat(3 << 20))), 413, bad),
        (client().post(at("/orders")).body(r#"{"item": 7}"#), 415, bad),
        (client().get(at("/orders/x?item=2")), 400, bad),
        (client().get(at("/orders/99999999999999999999?item=2")), 400, bad),
        (client().get(at("/orders/%FF?item=2")), 400, bad),
        (client().get(at("/orders/1")), 400, bad),
        (client().get(at("/orders/1?item=x")), 400, bad),
        (client().get(at("/nothing")), 404, "urn:db-axum:no-such-address"),
        (client().delete(at("/orders")), 405, "urn:db-axum:no-such-method"),
        (client().get(at("/wrong")), 500, "urn:db-axum:internal"),
        (client().get(at("/orders/0?item=2")), 503, "urn:db-axum:unavailable"),
    ] {
        let Answer { status: got, body, allow, .. } = ask(request).await;
        assert_eq!((got, &body["type"], &body["status"]), (status, &json!(kind), &json!(status)), "{body}");
        assert_eq!(body["detail"].is_string(), status < 500, "{body}");
        assert_eq!(allow.as_deref(), (status == 405).then_some("POST"), "{body}");
    }
}

#[tokio::test]
async fn a_request_has_one_id_in_its_answer_its_error_and_its_lines_of_the_log() {
    let log = Log::of_this_process("info");
    let served = service().await;
    let with =
        |id: &str| client().get(format!("{}/orders/0?item=2", served.address)).header("x-request-id", id);

    let longest = "x".repeat(64);
    for given in ["a-B_9.z", &longest] {
        let Answer { id, body, .. } = ask(with(given)).await;
        assert_eq!((&*id, &body["instance"]), (given, &json!(format!("urn:db-axum:request:{given}"))));
        assert_eq!(log.count(&["WARN", "request failed", &format!("request{{id=\"{given}\"}}")]), 1);
    }
    let mut made = Vec::new();
    for unfit in ["", "a b", "a\tb", "<script>", "é", &"x".repeat(65)] {
        let Answer { id, body, .. } = ask(with(unfit)).await;
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{unfit:?}: {id}");
        assert_eq!(body["instance"], format!("urn:db-axum:request:{id}"));
        made.push(id);
    }
    let good = client().get(format!("{}/orders/1?item=2", served.address));
    made.push(ask(good).await.id);
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 7, "each has another one");
}
