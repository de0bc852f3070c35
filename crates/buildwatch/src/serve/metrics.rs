//! `GET /metrics`, in the text form that Prometheus scrapes.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::serve::App;
use crate::serve::guard;

/// How often recorded values are put into their histograms: until then, each takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The media type of the text form, <https://prometheus.io/docs/instrumenting/exposition_formats/>.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Makes the exporter, and makes it the recorder of the process.
pub(super) fn install() -> anyhow::Result<PrometheusHandle> {
    let mut exporter = PrometheusBuilder::new().with_recommended_naming(true);
    for (name, bounds) in db_layer::metrics::histograms() {
        exporter = exporter.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)?;
    }
    exporter.install_recorder().context("metrics cannot be recorded")
}

/// Puts recorded values into their histograms until it is dropped.
pub(super) async fn keep_up(exporter: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        exporter.run_upkeep();
    }
}

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(app.clone(), guard::check_read))
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    app.db.gauges();
    ([(CONTENT_TYPE, TEXT), (CACHE_CONTROL, "no-store")], app.exporter.render())
}
