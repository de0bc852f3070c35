//! `/health/live` and `/health/ready`.

use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use db_layer::db_core::Stats;
use db_layer::db_notify::BusState;
use db_layer::encryption::KeyId;
use db_layer::{DatabaseHealth, Db, SealingHealth};
use serde_json::{Value, json};

/// How long the database may take to answer before the service counts as not ready.
const LIMIT: Duration = Duration::from_secs(2);

/// The two routes.
///
/// `/health/live` answers 200 while the process serves requests, and does not ask the database: restarting the clients of a
/// database that is away does not help. `/health/ready` answers 200 if the database answers within 2 s, and 503 otherwise, with
/// the pools, the bus and the encryption keys as JSON.
pub fn routes(db: Db) -> Router {
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready)).with_state(db)
}

async fn live() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

async fn ready(State(db): State<Db>) -> (StatusCode, Json<Value>) {
    let health = db.health(LIMIT).await;
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let database = match &health.database {
        DatabaseHealth::Answers { within } => json!({ "latency_ms": within.as_secs_f64() * 1000.0 }),
        DatabaseHealth::Fails { reason } => {
            tracing::warn!(%reason, "not ready");
            // The reason names hosts and roles, which HTTP clients must not see.
            json!({ "latency_ms": null })
        }
    };
    let body = json!({
        "status": if health.is_ready() { "ready" } else { "not ready" },
        "database": database,
        "pools": { "api": pool(health.api), "backend": pool(health.backend) },
        "bus": bus(&health.bus),
        "sealing": health.sealing.as_ref().map(sealing),
    });
    (status, Json(body))
}

fn bus(state: &BusState) -> Value {
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

fn pool(stats: Stats) -> Value {
    json!({ "open": stats.open, "idle": stats.idle, "max": stats.max })
}
