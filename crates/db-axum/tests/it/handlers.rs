//! Handles of a request, and its deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::routing::get;
use db_axum::{Api, Backend, Deadline, Json};
use db_layer::{Db, Pool};
use db_testkit::{TestDb, until};
use harness::Log;
use serde_json::{Value, json};

use crate::support::{PATIENCE, client, open, serve};

/// Long enough for what is done before it on a busy machine, and short against [`PATIENCE`].
const SOON: Duration = Duration::from_millis(500);

async fn sleep(Api(api): Api) -> db_axum::Result<()> {
    sqlx::query("select pg_sleep(60)").execute(&api).await?;
    Ok(())
}

async fn sleep_in_a_transaction(Backend(backend): Backend) -> db_axum::Result<()> {
    backend
        .tx(async |tx| {
            sqlx::query("create table late (n int)").execute(&mut *tx).await?;
            sqlx::query("select pg_sleep(60)").execute(&mut *tx).await?;
            Ok(())
        })
        .await
}

async fn until_nothing_runs(db: &TestDb, layer: &Db) {
    db.until_sessions("no statement runs", |all| {
        all.iter().all(|session| session.state != "active" || !session.query.contains("pg_sleep"))
    })
    .await;
    until("the pools are quiet", async || {
        layer.all_pools().map(Pool::stats).all(|stats| (stats.in_use, stats.repairing) == (0, 0))
    })
    .await;
}

#[db_testkit::test]
async fn what_a_handler_runs_at_its_deadline_is_cancelled_on_the_server_and_the_answer_is_504(db: TestDb) {
    let log = Log::of_this_process("info");
    let layer = open(&db).await;
    let routes = Router::new()
        .route("/sleep", get(sleep))
        .route("/sleep/{id}", get(sleep_in_a_transaction))
        // A handler that waits for something else has no answer of its own.
        .route("/wait", get(std::future::pending::<()>).post(std::future::pending::<()>))
        .with_state(layer.clone())
        .layer(Deadline::within(SOON));
    let served = serve(routes).await;

    for path in ["/sleep", "/sleep/7", "/wait"] {
        let answer = client().get(format!("{}{path}", served.address)).send().await.expect("an answer");
        assert_eq!(answer.status(), 504, "{path}");
        let problem: Value = answer.json().await.expect("JSON");
        assert_eq!(problem["type"], "urn:db-axum:timed-out", "{path}");
        assert!(problem["detail"].is_null(), "{problem}");
        until_nothing_runs(&db, &layer).await;
    }
    assert!(
        log.count(&["WARN", "a request was cut off by its deadline", "route=\"/wait\""]) > 0,
        "{}",
        log.text()
    );
    let posted = client().post(format!("{}/wait", served.address)).send().await.expect("an answer");
    let problem: Value = posted.json().await.expect("JSON");
    assert!(problem["detail"].as_str().is_some_and(|told| told.contains("not known whether")), "{problem}");
    let late: bool = sqlx::query_scalar("select to_regclass('late') is not null")
        .fetch_one(&db.pool())
        .await
        .expect("an answer");
    assert!(!late, "the transaction was rolled back");
    let cancelled: u64 = layer.all_pools().map(|pool| pool.stats().totals.cancelled).sum();
    assert_eq!(cancelled, 2, "both statements ran, and were cancelled");
}

#[db_testkit::test]
async fn a_statement_is_known_by_its_route_everywhere(db: TestDb) {
    async fn ask(Api(api): Api) -> db_axum::Result<Json<Value>> {
        let mut conn = api.here().acquire().await?;
        sqlx::query("select 'by route'").execute(&mut conn).await?;
        let holders = api.pool().holders();
        let at = holders[0].at.location().map(std::panic::Location::file);
        Ok(Json(json!([holders[0].name, at])))
    }
    let layer = open(&db).await;
    let inner = Router::new().route("/{id}", get(ask));
    let served = serve(Router::new().nest("/orders", inner).with_state(layer.clone())).await;

    for id in ["1", "2", "a%22b"] {
        let answer = client().get(format!("{}/orders/{id}", served.address)).send().await.expect("an answer");
        let told: Value = answer.json().await.expect("JSON");
        assert_eq!(told[0], "/orders/{id}", "the template, and not what the client has chosen");
        assert!(told[1].as_str().is_some_and(|file| file.ends_with("tests/it/handlers.rs")), "{told}");
    }
    let counts = layer.statement_counts().expect("they are counted");
    let named: Vec<_> = counts.statements.iter().filter(|count| count.name == Some("/orders/{id}")).collect();
    assert_eq!(named.iter().map(|count| count.calls).sum::<u64>(), 3, "{counts:?}");
}

#[db_testkit::test]
async fn a_handler_knows_how_much_time_is_left(db: TestDb) {
    async fn left(deadline: Option<Deadline>) -> Json<Option<f64>> {
        Json(deadline.map(|deadline| deadline.remaining().as_secs_f64()))
    }
    async fn must(deadline: Deadline) -> Json<f64> {
        Json(deadline.remaining().as_secs_f64())
    }
    let log = Log::of_this_process("info");
    let header = HeaderName::from_static("x-timeout");
    let layer = open(&db).await;
    let routes = Router::new()
        .route("/left", get(left))
        .layer(Deadline::within(Duration::from_mins(1)).seconds_in(header.clone()))
        // The shortest counts, wherever it is.
        .route("/twice", get(left).layer(Deadline::within(Duration::from_secs(5))))
        .layer(Deadline::within(Duration::from_secs(30)))
        .route("/never", get(must).layer(Deadline::within(Duration::MAX)))
        .route("/without", get(left))
        .route("/must", get(must))
        .with_state(layer);
    let served = serve(routes).await;
    let ask = async |path: &str, limit: Option<&str>| {
        let mut request = client().get(format!("{}/{path}", served.address));
        if let Some(limit) = limit {
            request = request.header(&header, limit);
        }
        let answer = request.send().await.expect("an answer");
        (answer.status(), answer.json::<Value>().await.expect("JSON"))
    };

    for (path, limit, most) in
        [("left", None, 30.0), ("left", Some("2"), 2.0), ("left", Some("90"), 30.0), ("twice", None, 5.0)]
    {
        let (_, left) = ask(path, limit).await;
        let left = left.as_f64().expect("there is a deadline");
        assert!(left <= most && left > most - 1.9, "{path} {limit:?}: {left}");
    }
    assert_eq!(ask("without", None).await, (StatusCode::OK, Value::Null));
    let (_, left) = ask("never", None).await;
    assert!(
        left.as_f64().is_some_and(|left| left > 1e9),
        "a time beyond the clock's range is a long one: {left}"
    );
    let (status, problem) = ask("must", None).await;
    assert_eq!(
        (status, &problem["type"]),
        (StatusCode::INTERNAL_SERVER_ERROR, &json!("urn:db-axum:internal"))
    );
    assert!(
        log.count(&[
            "ERROR",
            "the route lacks the layer that its handler needs",
            "route=\"/must\"",
            "Deadline::within",
        ]) > 0,
        "{}",
        log.text()
    );
}

#[db_testkit::test]
async fn a_client_without_time_is_answered_at_once_and_one_whose_time_is_no_number_is_refused(_db: TestDb) {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let handler = async move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let header = HeaderName::from_static("x-timeout-ms");
    let layer = Deadline::within(PATIENCE).milliseconds_in(header.clone());
    let served = serve(Router::new().route("/", get(handler)).layer(layer)).await;
    let ask = async |limit: &[u8]| {
        let limit = HeaderValue::from_bytes(limit).expect("a value");
        let answer = client().get(&served.address).header(&header, limit).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.text().await.expect("text");
        (status, serde_json::from_str::<Value>(&body).unwrap_or_default())
    };

    for bad in ["-1", "\u{221e}", "inf", "1e9", "soon", ""] {
        let (status, problem) = ask(bad.as_bytes()).await;
        assert_eq!((status, &problem["type"]), (400, &json!("urn:db-axum:bad-request")), "{bad}");
        let detail = "the header x-timeout-ms must be one number of milliseconds, such as 500";
        assert_eq!(problem["detail"], detail);
    }
    let (status, problem) = ask(b"0").await;
    assert_eq!((status, &problem["type"]), (504, &json!("urn:db-axum:timed-out")));
    assert_eq!(runs.load(Ordering::Relaxed), 0, "no handler ran");
    assert_eq!(ask(b"60000").await.0, 200);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}
