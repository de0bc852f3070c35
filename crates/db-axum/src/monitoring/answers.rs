//! What the routes of monitoring answer.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use db_layer::db_core::sql::normalize;
use db_layer::db_core::{CallSite, CloseReason, Holder, Limits, Pool, Stats, Totals};
use db_layer::{DatabaseHealth, Db, Pooler, SlowSource, StatementCount};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Error;
use crate::health::{self, latency};

/// How many slow queries are shown unless the client says.
const SLOW_QUERIES: u32 = 20;

/// How many are shown at most.
const MOST_SLOW_QUERIES: u32 = 500;

pub(super) async fn health(State(db): State<Db>) -> Response {
    let health = db.health();
    let Sum { in_use, idle, open, max } = Sum::of(&db);
    let code = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "healthy": health.is_ready(),
        "timestamp": now(),
        "database": {
            "healthy": health.is_ready(),
            "responseTime": latency(&health),
            "connectionPool": {
                "active": in_use,
                "idle": idle,
                "total": open,
                "max": max,
                "utilizationPercent": format!("{:.2}", percent(open, max)),
                "isPgBouncer": db.api().pool().config().pooler() != Pooler::None,
                "isShuttingDown": db.closing().is_cancelled(),
            },
        },
        "redis": redis(&db, true),
    });
    answer(code, body)
}

pub(super) async fn pool(State(db): State<Db>) -> Response {
    let Sum { in_use, open, max, .. } = Sum::of(&db);
    let pools: Vec<Value> = db.all_pools().map(one_pool).collect();
    let body = json!({
        "database": {
            "utilizationPercent": percent(open, max),
            "activeConnections": in_use,
            "maxConnections": max,
            "isHealthy": db.health().is_ready(),
        },
        "redis": redis(&db, false),
        "pools": pools,
    });
    answer(StatusCode::OK, body)
}

/// In the words of the client that dashboards know.
fn redis(db: &Db, with_status: bool) -> Value {
    let redis = db.health().redis;
    let status = match &redis {
        None => "not configured",
        Some(redis) if redis.is_closed => "end",
        Some(redis) => match redis.server {
            DatabaseHealth::Answers { .. } => "ready",
            DatabaseHealth::Fails { .. } => "reconnecting",
            _ => "wait",
        },
    };
    let mut body = json!({ "available": redis.is_some(), "connected": status == "ready" });
    if with_status {
        body["status"] = status.into();
    }
    body
}

pub(super) async fn alert_lines(State(db): State<Db>) -> Response {
    let alerts: Vec<String> = db.alerts().iter().map(ToString::to_string).collect();
    answer(StatusCode::OK, json!({ "count": alerts.len(), "alerts": alerts, "timestamp": now() }))
}

pub(super) async fn alerts(State(db): State<Db>) -> Response {
    let alerts: Vec<Value> = db
        .alerts()
        .iter()
        .map(|alert| {
            json!({
                "name": alert.rule.name,
                "severity": alert.rule.severity.as_str(),
                "pool": alert.pool,
                "text": alert.to_string(),
                "value": alert.value,
                "above": alert.rule.above,
                "unit": alert.rule.unit.as_str(),
                "lasts_s": alert.rule.lasts.as_secs(),
                "keeps_s": alert.rule.keeps.as_secs(),
                "since": rfc3339(alert.since),
                "action": alert.rule.action,
            })
        })
        .collect();
    answer(StatusCode::OK, json!({ "alerts": alerts, "timestamp": now() }))
}

#[derive(Deserialize)]
pub(super) struct Limited {
    limit: Option<u32>,
}

pub(super) async fn slow_queries(
    State(db): State<Db>,
    limit: Result<Query<Limited>, QueryRejection>,
) -> Result<Response, Error> {
    let bad = || {
        let detail = format!("`limit` must be a number from 1 to {MOST_SLOW_QUERIES}");
        Error::bad_request(StatusCode::BAD_REQUEST, &detail)
    };
    let limit = limit.map_err(|_| bad())?.0.limit.unwrap_or(SLOW_QUERIES);
    if !(1..=MOST_SLOW_QUERIES).contains(&limit) {
        return Err(bad());
    }
    let slow = db.slow_queries(limit).await;
    let (source, reason) = match slow.source {
        SlowSource::Server => ("pg_stat_statements", None),
        SlowSource::Process { why } => ("this process", Some(why.to_string())),
        _ => ("unknown", None),
    };
    let queries: Vec<Value> = slow
        .queries
        .iter()
        .map(|query| {
            json!({
                "query": query.text,
                "calls": query.calls,
                "total_ms": ms(query.total),
                "mean_ms": ms(query.mean),
                "max_ms": ms(query.max),
                "rows": query.rows,
            })
        })
        .collect();
    let body = json!({ "source": source, "reason": reason, "queries": queries, "timestamp": now() });
    Ok(answer(StatusCode::OK, body))
}

pub(super) async fn holders(State(db): State<Db>) -> Response {
    let of_pool = |pool: &Pool| {
        let name = pool.name().to_owned();
        pool.holders().iter().map(|holder| one_holder(&name, holder)).collect::<Vec<_>>()
    };
    let holders: Vec<Value> = db.all_pools().flat_map(of_pool).collect();
    answer(StatusCode::OK, json!({ "holders": holders, "timestamp": now() }))
}

pub(super) async fn statements(State(db): State<Db>) -> Response {
    let counts = db.statement_counts();
    let statements =
        counts.as_ref().map(|counts| counts.statements.iter().map(one_statement).collect::<Vec<Value>>());
    let body = json!({
        "since": counts.as_ref().map(|counts| rfc3339(counts.since)),
        "forgotten": counts.as_ref().map(|counts| counts.forgotten),
        "statements": statements,
        "timestamp": now(),
    });
    answer(StatusCode::OK, body)
}

pub(super) async fn reset_statements(State(db): State<Db>) -> StatusCode {
    db.reset_statement_counts();
    StatusCode::NO_CONTENT
}

pub(super) async fn bus(State(db): State<Db>) -> Response {
    let state = db.bus().state();
    let mut body = health::bus(&state);
    body["namespace"] = db.bus().namespace().into();
    body["received_gaps"] = db_layer::db_notify::GapReason::ALL
        .into_iter()
        .map(|reason| (reason.as_str().to_owned(), state.received_gaps.of(reason).into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    answer(StatusCode::OK, body)
}

pub(super) async fn streams(State(db): State<Db>) -> Response {
    let state = db.events().state();
    let body = json!({
        "followers": state.followers,
        "followed": state.followed,
        "is_polling": state.is_polling,
        "lag_ms": state.lag.map(ms),
        "pages": state.pages,
        "head_polls": state.head_polls,
    });
    answer(StatusCode::OK, body)
}

/// The connections of all pools.
struct Sum {
    in_use: u32,
    idle: u32,
    open: u32,
    max: u32,
}

impl Sum {
    fn of(db: &Db) -> Self {
        let none = Self { in_use: 0, idle: 0, open: 0, max: 0 };
        db.all_pools().map(Pool::stats).fold(none, |sum, stats| Self {
            in_use: sum.in_use + stats.in_use,
            idle: sum.idle + stats.idle,
            open: sum.open + stats.open,
            max: sum.max + stats.max,
        })
    }
}

fn one_pool(pool: &Pool) -> Value {
    let Stats { max, open, idle, in_use, repairing, dialling, waiting, totals, .. } = pool.stats();
    let Limits { max_idle, min_idle, max_waiting, queue_target, queue_interval, .. } = pool.limits();
    json!({
        "name": pool.name(),
        "max": max,
        "open": open,
        "idle": idle,
        "in_use": in_use,
        "repairing": repairing,
        "dialling": dialling,
        "waiting": waiting,
        "max_idle": max_idle,
        "min_idle": min_idle,
        "max_waiting": max_waiting,
        "queue_target_ms": queue_target.map(ms),
        "queue_interval_ms": ms(queue_interval),
        "max_sessions": pool.max_sessions(),
        "totals": all_totals(&totals),
    })
}

fn all_totals(totals: &Totals) -> Value {
    let closed = CloseReason::ALL.map(|why| (why.as_str().to_owned(), totals.closed.of(why).into()));
    json!({
        "acquired": totals.acquired,
        "queued": totals.queued,
        "queue_wait_ms": ms(totals.queue_wait),
        "returned": totals.returned,
        "timed_out": totals.timed_out,
        "past_deadline": totals.past_deadline,
        "shed": totals.shed,
        "dialled": totals.dialled,
        "dialling_ms": ms(totals.dialling),
        "dial_failures": totals.dial_failures,
        "closed": Value::from(serde_json::Map::from_iter(closed)),
        "repaired": totals.repaired,
        "repair_failed": totals.repair_failed,
        "cancelled": totals.cancelled,
        "slow": totals.slow,
        "leaked": totals.leaked,
        "leaks_returned": totals.leaks_returned,
        "nested_acquires": totals.nested_acquires,
        "stale_plans": totals.stale_plans,
        "retries": totals.retries,
        "ambiguous": totals.ambiguous,
    })
}

fn one_holder(pool: &str, holder: &Holder) -> Value {
    let (statement, running) = match &holder.statement {
        // Numbers are literals, too.
        Some((sql, running)) => (Some(normalize(sql)), Some(ms(*running))),
        None => (None, None),
    };
    json!({
        "pool": pool,
        "line": line(holder.at),
        "name": holder.name,
        "pid": holder.pid,
        "held_ms": ms(holder.held),
        "in_transaction": holder.in_transaction,
        "idle_ms": holder.idle.map(ms),
        "statement": statement,
        "running_ms": running,
        "slow": holder.slow,
        "leaked": holder.leaked,
    })
}

fn one_statement(count: &StatementCount) -> Value {
    let lines: Vec<Value> =
        count.lines.iter().map(|(at, calls)| json!({ "line": line(*at), "calls": calls })).collect();
    json!({
        "name": count.name,
        "statement": count.text,
        "calls": count.calls,
        "errors": count.errors,
        "total_ms": ms(count.total),
        "mean_ms": ms(count.mean()),
        "max_ms": ms(count.max),
        "rows": count.rows,
        "lines": lines,
    })
}

/// `src/orders.rs:17`; null if it is not known.
fn line(at: CallSite) -> Option<String> {
    at.location().map(|at| format!("{}:{}", at.file(), at.line()))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// To two digits after the point.
fn percent(part: u32, whole: u32) -> f64 {
    (f64::from(part) * 10_000.0 / f64::from(whole.max(1))).round() / 100.0
}

#[expect(clippy::disallowed_methods, reason = "dashboards want to know when it was so")]
fn now() -> Option<String> {
    rfc3339(SystemTime::now())
}

fn rfc3339(time: SystemTime) -> Option<String> {
    OffsetDateTime::from(time).format(&Rfc3339).ok()
}

fn answer(code: StatusCode, body: Value) -> Response {
    (code, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
