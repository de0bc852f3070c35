//! The routes of monitoring.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use db_layer::{Config, Db, NewEvent, Options, PoolOptions};
use db_testkit::{Proxy, Session, TestDb, until};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{PATIENCE, Served, client, open, serve};

/// Serves the routes under a prefix, to this machine, with the addresses of peers.
async fn monitored(db: &Db) -> Served {
    let routes = Router::new().nest("/ops", db_axum::monitoring(db.clone()).for_this_machine());
    serve_with_peers(routes).await
}

pub(crate) async fn serve_with_peers(routes: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let service = routes.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(async move { axum::serve(listener, service).await.expect("serves") });
    Served::new(address, AbortOnDropHandle::new(server))
}

async fn get(served: &Served, path: &str) -> (StatusCode, Value) {
    let answer = client().get(format!("{}/ops{path}", served.address)).send().await.expect("an answer");
    let cache = answer.headers().get("cache-control").map(|value| value.to_str().expect("text").to_owned());
    let status = answer.status();
    if status.is_success() {
        assert_eq!(cache.as_deref(), Some("no-store"), "{path}");
    }
    (status, answer.json().await.expect("JSON"))
}

fn options(db: &TestDb) -> Options {
    Options::new(Config::from_url(&db.url()).expect("an address"))
}

/// Takes what differs from run to run out of an answer.
fn take(body: &mut Value, path: &str) -> Value {
    body.pointer_mut(path).unwrap_or_else(|| panic!("{path}")).take()
}

#[db_testkit::test]
async fn the_state_of_connections_has_the_names_that_dashboards_know(db: TestDb) {
    let api = PoolOptions::api().acquire_timeout(PATIENCE);
    let layer = db_layer::open(options(&db).api(api)).await.expect("an open database");
    let served = monitored(&layer).await;
    let held = try_join_all((0..3).map(|_| layer.api().acquire())).await.expect("connections");
    until("a look", async || layer.health().clock_offset.is_some()).await;

    let (status, mut health) = get(&served, "/connections/health").await;
    let time = take(&mut health, "/timestamp");
    assert!(time.as_str().is_some_and(|time| time.ends_with('Z') && time.contains('T')), "{time}");
    assert!(take(&mut health, "/database/responseTime").as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(
        (status, health),
        (
            StatusCode::OK,
            json!({
                "healthy": true, "timestamp": null,
                "database": {
                    "healthy": true, "responseTime": null,
                    "connectionPool": {
                        "active": 3, "idle": 0, "total": 3, "max": 60, "utilizationPercent": "5.00",
                        "isPgBouncer": false, "isShuttingDown": false,
                    },
                },
                "redis": { "available": false, "connected": false, "status": "not configured" },
            })
        )
    );

    let (status, mut pool) = get(&served, "/connections/pool").await;
    let pools = take(&mut pool, "/pools");
    assert_eq!(
        (status, pool),
        (
            StatusCode::OK,
            json!({
                "database": {
                    "utilizationPercent": 5.0, "activeConnections": 3, "maxConnections": 60, "isHealthy": true,
                },
                "redis": { "available": false, "connected": false },
                "pools": null,
            })
        )
    );
    assert_eq!(
        (&pools[0]["name"], &pools[0]["in_use"], &pools[0]["max"]),
        (&json!("api"), &json!(3), &json!(10))
    );
    assert_eq!(
        (&pools[1]["name"], &pools[1]["open"], &pools[1]["max"]),
        (&json!("backend"), &json!(0), &json!(50))
    );
    assert_eq!(pools[0]["totals"]["acquired"], 3);
    assert_eq!(pools[0]["totals"]["closed"]["lost"], 0);

    let (_, mut alerts) = get(&served, "/connections/alerts").await;
    take(&mut alerts, "/timestamp");
    assert_eq!(alerts, json!({ "alerts": [], "count": 0, "timestamp": null }));
    drop(held);
}

#[db_testkit::test]
async fn a_crowded_pool_is_an_alert_in_both_lists(db: TestDb) {
    let layer = open(&db).await;
    let served = monitored(&layer).await;
    let held = try_join_all((0..9).map(|_| layer.api().acquire())).await.expect("connections");

    let is_crowded = |alert: &db_layer::alerts::Alert| alert.rule.name == "PoolUtilization";
    until("an alert", async || layer.alerts().iter().any(is_crowded)).await;

    let (_, lines) = get(&served, "/connections/alerts").await;
    let text = json!("WARNING: Database connection pool at 90% utilization (api)");
    let all_lines = lines["alerts"].as_array().expect("a list");
    assert!(all_lines.contains(&text) && lines["count"] == all_lines.len(), "{lines}");
    let (_, all) = get(&served, "/alerts").await;
    let mut all = all["alerts"].as_array().expect("a list").iter();
    let alert = all.find(|alert| alert["name"] == "PoolUtilization").expect("the alert");
    let said = json!({
        "name": alert["name"], "severity": alert["severity"], "pool": alert["pool"], "value": alert["value"],
        "above": alert["above"], "unit": alert["unit"], "lasts_s": alert["lasts_s"], "keeps_s": alert["keeps_s"],
        "text": alert["text"],
    });
    assert_eq!(
        said,
        json!({
            "name": "PoolUtilization", "severity": "warning", "pool": "api", "value": 90.0, "above": 80.0,
            "unit": "%", "lasts_s": 10, "keeps_s": 30, "text": text,
        })
    );
    assert!(alert["action"].as_str().is_some_and(|action| action.contains("who holds connections")));
    assert!(alert["since"].is_string());
    drop(held);
}

#[db_testkit::test]
async fn a_database_that_does_not_answer_is_not_healthy_and_the_routes_answer_all_the_same(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let layer = db_layer::open(Options::new(config)).await.expect("an open database");
    let served = monitored(&layer).await;
    until("a look", async || layer.health().clock_offset.is_some()).await;

    proxy.freeze();
    until("not ready", async || !layer.health().is_ready()).await;

    let (status, body) = get(&served, "/connections/health").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((&body["healthy"], &body["database"]["healthy"]), (&json!(false), &json!(false)));
    assert_eq!(body["database"]["responseTime"], Value::Null);
    assert_eq!(get(&served, "/connections/pool").await.1["database"]["isHealthy"], false);
    let (status, slow) = get(&served, "/database/slow-queries").await;
    assert_eq!((status, &slow["source"]), (StatusCode::OK, &json!("this process")));
    assert!(slow["reason"].as_str().is_some_and(|reason| reason.contains("within 2 s")), "{slow}");
    proxy.thaw();
}

#[db_testkit::test]
async fn holders_and_statements_are_shown_with_their_lines_and_without_values(db: TestDb) {
    let layer = open(&db).await;
    let served = monitored(&layer).await;
    let (plain, handle) = (line!(), layer.api());
    let sql = "select $1::text, 'hunter2', 4111111111";
    sqlx::query(sql).bind("hunter3").execute(handle).await.expect("an answer");
    let named = layer.api().named("a\n\"b\"\u{1}");
    sqlx::query("select 1 / $1::int").bind(0).execute(named).await.expect_err("division by zero");
    let (held, handle) = (line!(), layer.backend());
    let mut tx = handle.named("reports\u{7}").begin().await.expect("begun");
    sqlx::query("select 'hunter4'").execute(&mut *tx).await.expect("an answer");

    let slow = "select pg_sleep(600), 'hunter5', 4111111112, $1::text";
    let running = tokio::spawn(sqlx::query(slow).bind("hunter6").execute(layer.api()));
    db.until_sessions("it runs", |all| all.iter().any(Session::is_sleeping)).await;

    let (_, holders) = get(&served, "/holders").await;
    running.abort();
    let (_, statements) = get(&served, "/statements").await;

    assert_eq!(holders["holders"].as_array().map(Vec::len), Some(2), "{holders}");
    assert_eq!(holders["holders"][0]["statement"], "select pg_sleep(…), '…', …, $1::text");
    assert!(holders["holders"][0]["running_ms"].is_number() && holders["holders"][0]["idle_ms"].is_null());
    let holder = &holders["holders"][1];
    assert_eq!((&holder["pool"], &holder["name"]), (&json!("backend"), &json!("reports\u{7}")));
    assert_eq!((&holder["in_transaction"], &holder["statement"]), (&json!(true), &Value::Null));
    assert_eq!(holder["line"], format!("{}:{held}", file!()));
    let ms = |of: &str| holder[of].as_f64().unwrap_or_else(|| panic!("{of} in {holder}"));
    assert!(ms("held_ms") >= ms("idle_ms"));
    let of = |text: &str| {
        let mut all = statements["statements"].as_array().expect("a list").iter();
        all.find(|count| count["statement"] == text).unwrap_or_else(|| panic!("{text} in {statements}"))
    };
    let first = of("select $1::text, '…', …");
    assert_eq!((&first["calls"], &first["errors"], &first["name"]), (&json!(1), &json!(0), &Value::Null));
    assert_eq!(first["lines"], json!([{ "line": format!("{}:{plain}", file!()), "calls": 1 }]));
    let failed = of("select … / $1::int");
    assert_eq!((&failed["errors"], &failed["name"]), (&json!(1), &json!("a\n\"b\"\u{1}")));
    let (_, slow) = get(&served, "/database/slow-queries?limit=1").await;
    assert_eq!(slow["queries"].as_array().map(Vec::len), Some(1), "{slow}");
    assert!(slow["reason"].as_str().is_some_and(|reason| reason.contains("not installed")), "{slow}");
    for body in [&holders, &statements, &slow] {
        assert!(!body.to_string().contains("hunter") && !body.to_string().contains("4111"), "{body}");
    }
    tx.rollback().await.expect("rolled back");

    let reset =
        client().post(format!("{}/ops/statements/reset", served.address)).send().await.expect("an answer");
    assert_eq!(reset.status(), StatusCode::NO_CONTENT);
    let (_, anew) = get(&served, "/statements").await;
    assert_eq!((&anew["statements"], &anew["forgotten"]), (&json!([]), &json!(0)));
}

#[db_testkit::test]
async fn the_bus_and_the_streams_are_shown(db: TestDb) {
    let layer = open(&db).await;
    let served = monitored(&layer).await;
    let log = layer.events().create().await.expect("a log");
    let mut stream = layer.events().stream(log, 0);
    let reading = AbortOnDropHandle::new(tokio::spawn(async move {
        while stream.next_batch().await.is_ok_and(|batch| batch.is_some()) {}
    }));
    until("it follows", async || layer.events().state().followers == 1).await;
    layer.events().append(log, &[NewEvent::new("n", "")]).await.expect("appended");
    until("it is read", async || layer.events().state().lag.is_some()).await;

    let (_, streams) = get(&served, "/streams").await;
    assert_eq!((&streams["followers"], &streams["followed"]), (&json!(1), &json!(1)));
    assert_eq!(streams["is_polling"], false);
    assert!(streams["lag_ms"].as_f64().is_some_and(|lag| lag < 20_000.0), "{streams}");
    let (_, bus) = get(&served, "/bus").await;
    assert_eq!((&bus["connected"], &bus["trouble"]), (&json!(true), &Value::Null));
    assert!(bus["subscribers"].as_u64() >= Some(1) && bus["received_gaps"]["lagged"] == 0, "{bus}");
    drop(reading);
}

#[db_testkit::test]
async fn bad_limits_and_methods_are_refused(db: TestDb) {
    let layer = open(&db).await;
    let served = monitored(&layer).await;

    for limit in ["0", "-1", "501", "99999999999999999999", "x", "%00", "1&limit=2"] {
        let (status, body) = get(&served, &format!("/database/slow-queries?limit={limit}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{limit}");
        assert_eq!(body["detail"], "`limit` must be a number from 1 to 500", "{limit}");
    }
    for (method, path) in [("GET", "/statements/reset"), ("POST", "/statements"), ("DELETE", "/holders")] {
        let method = method.parse().expect("a method");
        let request = client().request(method, format!("{}/ops{path}", served.address));
        assert_eq!(
            request.send().await.expect("an answer").status(),
            StatusCode::METHOD_NOT_ALLOWED,
            "{path}"
        );
    }
}

#[db_testkit::test]
async fn only_those_on_this_machine_see_what_is_for_this_machine(db: TestDb) {
    let layer = open(&db).await;
    let served = monitored(&layer).await;
    let blind =
        serve(Router::new().nest("/ops", db_axum::monitoring(layer.clone()).for_this_machine())).await;
    let status = async |served: &Served, path: &str, headers: &[(&'static str, &str)]| {
        let request = client().get(format!("{}/ops{path}", served.address));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.expect("an answer").status()
    };

    assert_eq!(status(&served, "/holders", &[]).await, StatusCode::OK);
    assert_eq!(status(&served, "/holders", &[("host", "localhost")]).await, StatusCode::OK);
    for path in [
        "/connections/health",
        "/connections/pool",
        "/connections/alerts",
        "/alerts",
        "/database/slow-queries",
        "/holders",
        "/statements",
        "/bus",
        "/streams",
    ] {
        for headers in [
            [("x-forwarded-for", "127.0.0.1")],
            [("host", "evil.example")],
            [("origin", "http://evil.example")],
        ] {
            assert_eq!(status(&served, path, &headers).await, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
        assert_eq!(status(&blind, path, &[]).await, StatusCode::FORBIDDEN, "whom it cannot see: {path}");
    }
    let reset = client()
        .post(format!("{}/ops/statements/reset", served.address))
        .header("origin", "http://evil.example");
    assert_eq!(reset.send().await.expect("an answer").status(), StatusCode::FORBIDDEN);
}

/// Passes those who know the word, and panics for those who want it.
async fn word(request: Request, next: Next) -> Response {
    match request.headers().get("word").map(HeaderValue::as_bytes) {
        Some(b"open") => next.run(request).await,
        Some(b"panic") => panic!("the guard's own fault"),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[db_testkit::test]
async fn a_layer_decides_who_sees_what_it_guards_and_one_that_panics_answers_500(db: TestDb) {
    let layer = open(&db).await;
    let routes = Router::new().nest("/ops", db_axum::monitoring(layer.clone()).guarded_by(from_fn(word)));
    let served = serve(routes).await;
    let status = async |word: &str| {
        let request = client().get(format!("{}/ops/holders", served.address)).header("word", word);
        let answer = request.timeout(Duration::from_secs(10)).send().await.expect("an answer");
        let status = answer.status();
        (status, answer.text().await.expect("a text"))
    };

    assert_eq!(status("open").await.0, StatusCode::OK);
    assert_eq!(status("shut").await.0, StatusCode::UNAUTHORIZED);
    let (broken, text) = status("panic").await;
    assert_eq!(broken, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!text.contains("own fault"), "{text}");
    assert_eq!(status("open").await.0, StatusCode::OK, "and it goes on");
}
