//! Routes about health: for orchestrators, for dashboards, and for people.

use std::time::SystemTime;

use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use db_layer::db_core::Stats;
use db_layer::db_notify::BusState;
use db_layer::encryption::KeyId;
use db_layer::redis::RedisHealth;
use db_layer::{DatabaseHealth, Db, Health, SealingHealth, Startup};
use derive_setters::Setters;
use serde_json::{Value, json};

/// Callers who wait for a connection of the API pool, above which `/health/db` says `degraded`.
const LONG_QUEUE: u32 = 10;

/// The media type of draft-inadarei-api-health-check-06.
const HEALTH_JSON: &str = "application/health+json";

/// The routes. None of them asks the database or waits for a pool: they read what [`Db::health`] has noted, and say `Cache-Control: no-store`.
///
/// | route | 200 | 503 |
/// |---|---|---|
/// | `/health/live` | while the process serves requests | never: restarting the clients of a database that is away does not help |
/// | `/health/startup` | from the moment when the database is open | before, by [`Starting`](crate::Starting) |
/// | `/health/ready` | while requests can be served, however busy the pools are | with the reason: see [`NotReady`](db_layer::NotReady) |
/// | `/health` | as `/health/ready`, with the pools, the bus, the migrations and the encryption keys | the same |
/// | `/health/db` | `healthy` | `degraded`: more than 10 callers wait for a connection; `unhealthy`: not ready. No probe: it takes a busy service out of rotation |
///
/// To a client that accepts `application/health+json`, all but the last speak that (`pass`, `fail`).
pub fn routes(db: Db) -> Router {
    routes_with(db, HealthOptions::default())
}

/// What the routes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Setters)]
#[non_exhaustive]
pub struct HealthOptions {
    /// Whether `/health/db` says 200 while the service is `degraded` (default false: 503).
    pub degraded_is_ok: bool,
}

/// The state of the routes.
#[derive(Clone)]
struct Told {
    db: Db,
    options: HealthOptions,
}

/// [`routes`], with options.
pub fn routes_with(db: Db, options: HealthOptions) -> Router {
    Router::new()
        .route("/health", get(detail))
        .route("/health/live", get(async |headers: HeaderMap| live(&headers)))
        .route("/health/startup", get(started))
        .route("/health/ready", get(ready))
        .route("/health/db", get(database))
        .with_state(Told { db, options })
}

pub(crate) fn live(headers: &HeaderMap) -> Response {
    answer(headers, true, json!({ "status": "alive" }))
}

async fn started(headers: HeaderMap) -> Response {
    answer(&headers, true, json!({ "status": "started", "reason": null }))
}

/// Before the database is open, and until the service is told of it.
pub(crate) fn startup(startup: &Startup, headers: &HeaderMap) -> Response {
    answer(headers, false, json!({ "status": "starting", "reason": startup.phase().to_string() }))
}

async fn ready(State(Told { db, .. }): State<Told>, headers: HeaderMap) -> Response {
    let health = db.health();
    answer(&headers, health.is_ready(), readiness(&health))
}

async fn detail(State(Told { db, .. }): State<Told>, headers: HeaderMap) -> Response {
    let health = db.health();
    let mut body = readiness(&health);
    body["database"] = json!({ "latency_ms": latency(&health) });
    body["pools"] = json!({ "api": pool(&health.api), "backend": pool(&health.backend) });
    body["bus"] = bus(&health.bus);
    body["migrations"] = json!(health.migrations);
    body["sealing"] = health.sealing.as_ref().map(sealing).into();
    body["redis"] = health.redis.as_ref().map(redis).into();
    answer(&headers, health.is_ready(), body)
}

/// The status and the message of `/health/db` while requests cannot be served.
const UNHEALTHY: (&str, &str) = ("unhealthy", "Database is not available");

/// `/health/db` before the database is open.
pub(crate) fn no_database() -> Response {
    flat(StatusCode::SERVICE_UNAVAILABLE, UNHEALTHY, &Stats::default(), None)
}

async fn database(State(Told { db, options }): State<Told>) -> Response {
    let health = db.health();
    let (status, message) = if !health.is_ready() {
        UNHEALTHY
    } else if health.api.waiting > LONG_QUEUE {
        ("degraded", "High connection wait queue")
    } else {
        ("healthy", "Database is available")
    };
    let is_ok = status == "healthy" || (status == "degraded" && options.degraded_is_ok);
    let code = if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    flat(code, (status, message), &health.api, latency(&health))
}

/// In the form that dashboards of other pools know.
fn flat(code: StatusCode, (status, message): (&str, &str), api: &Stats, latency: Option<f64>) -> Response {
    let body = json!({
        "status": status,
        "message": message,
        "total": api.open,
        "idle": api.idle,
        "waiting": api.waiting,
        "latency": latency,
    });
    (code, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn readiness(health: &Health) -> Value {
    let status = if health.is_ready() { "ready" } else { "not ready" };
    json!({ "status": status, "reason": health.not_ready.map(|why| why.to_string()) })
}

/// Milliseconds of the last look. The reason of one without an answer names hosts and roles, which HTTP clients must not see; the log has it.
pub(crate) fn latency(health: &Health) -> Option<f64> {
    within(&health.database)
}

fn within(server: &DatabaseHealth) -> Option<f64> {
    match server {
        DatabaseHealth::Answers { within } => Some(within.as_secs_f64() * 1000.0),
        _ => None,
    }
}

fn answer(headers: &HeaderMap, is_good: bool, mut body: Value) -> Response {
    let code = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants = accepts.flat_map(|value| value.split(',')).any(|it| it.trim().starts_with(HEALTH_JSON));
    if !wants {
        return (code, [(CACHE_CONTROL, "no-store")], Json(body)).into_response();
    }
    body["status"] = if is_good { "pass" } else { "fail" }.into();
    if let Some(reason) =
        body.as_object_mut().and_then(|body| body.remove("reason")).filter(|it| !it.is_null())
    {
        body["output"] = reason;
    }
    (code, [(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, HEALTH_JSON)], Json(body)).into_response()
}

pub(crate) fn bus(state: &BusState) -> Value {
    // None if the clock was set back in between.
    let seconds =
        |since: Option<SystemTime>| since.and_then(|since| since.elapsed().ok()).map(|ago| ago.as_secs());
    json!({
        "connected": state.is_connected(),
        "connected_for_s": seconds(state.connected_since),
        "heartbeat_ago_s": seconds(state.last_heartbeat),
        "trouble": state.trouble.map(|trouble| trouble.to_string()),
        "queue_usage": state.queue_usage,
        "topics": state.topics,
        "channels": state.channels,
        "subscribers": state.subscribers,
        "pending": state.pending,
        "sent": state.sent,
        "coalesced": state.coalesced,
        "gated": state.gated,
        "gaps": state.gaps,
        "lagged": state.lagged,
    })
}

/// Without the alarm's text and the names of processes, which HTTP clients must not see. The log has both.
fn sealing(health: &SealingHealth) -> Value {
    let ids = |ids: &[KeyId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "primary": health.primary.map(|id| id.to_string()),
        "keys": ids(&health.keys),
        "candidate": health.candidate.map(|id| id.to_string()),
        "waits_for": health.waits_for.len(),
        "alarm": health.alarm.is_some(),
        "unknown": ids(&health.unknown),
        "left_to_rekey": health.rekeying.as_ref().and_then(|state| state.left),
        "sealed": health.totals.sealed,
        "unsealed": health.totals.unsealed,
        "failed": {
            "keys_away": health.totals.away,
            "unknown_key": health.totals.unknown_key,
            "not_authentic": health.totals.not_authentic,
            "unreadable": health.totals.unreadable,
            "not_sealed": health.totals.not_sealed,
        },
    })
}

/// Without the reason of a failure, which names hosts. The log has it.
fn redis(health: &RedisHealth) -> Value {
    let figures = health.figures.unwrap_or_default();
    json!({
        "connected": health.is_connected(),
        "latency_ms": within(&health.server),
        "without": health.without,
        "connections": figures.connections,
        "commands": figures.commands,
        "commands_per_second": figures.commands_per_second,
        "memory_bytes": figures.memory,
    })
}

fn pool(stats: &Stats) -> Value {
    json!({ "open": stats.open, "idle": stats.idle, "max": stats.max })
}
