//! What measuring costs: statements through our pools with the metrics and the counts of `db-layer` and without, beside sqlx's pool with those of
//! `sqlx-otel` and without.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use db_layer::{Db, MonitorOptions, Options, PoolOptions};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};
use tokio::runtime::Runtime;
use tokio_util::task::AbortOnDropHandle;

use crate::load::Load;
use crate::peers::{Observed, PgPool, SELECT, Select, Selects, Test};
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;

const CONNECTIONS: u32 = 10;

/// As those of the pools: on a shared machine, two seconds differ by more than what is measured.
const SLICE: Duration = Duration::from_secs(4);

/// The exporter's own documentation asks for a call every few seconds.
const UPKEEP: Duration = Duration::from_secs(1);

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let _inside = runtime.enter();
        let exporter = exporter()?;
        let _upkeep = AbortOnDropHandle::new(runtime.spawn(keep_up(exporter.clone())));
        // It keeps the sums, as it does between two exports.
        let meters = SdkMeterProvider::builder().with_reader(ManualReader::builder().build()).build();
        opentelemetry::global::set_meter_provider(meters);

        let monitor = MonitorOptions::default();
        let uncounted = Ours(runtime.block_on(open(database, monitor.statements(0)))?);
        let off = Ours(runtime.block_on(open(database, monitor))?);
        let on = Ours(runtime.block_on(open(database, monitor))?);
        on.0.measure();
        let plain = runtime.block_on(PgPool::new(database.url(), CONNECTIONS, Test::Default))?;
        let otel =
            Observed::new(runtime.block_on(PgPool::new(database.url(), CONNECTIONS, Test::Default))?);

        let mut arms = vec![
            arm(runtime, "measure.10.uncounted", uncounted),
            arm(runtime, "measure.10.off", off),
            arm(runtime, "measure.10.on", on),
            arm(runtime, "measure.10.pgpool", plain),
            arm(runtime, "measure.10.otel", otel),
        ];
        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let text = exporter.render();
        ensure!(text.contains("db_client_operation_duration_seconds_bucket"), "nothing was measured");
        let rows = vec![
            measured.rates("measure.counts.vs_none", "measure.10.off", "measure.10.uncounted"),
            measured.rates("measure.pool_10.vs_off", "measure.10.on", "measure.10.off"),
            measured.added(
                "measure.otel_share",
                ("measure.10.on", "measure.10.off"),
                ("measure.10.otel", "measure.10.pgpool"),
            ),
        ];
        Ok(measured.report(what, rows))
    })
}

fn exporter() -> anyhow::Result<PrometheusHandle> {
    let mut exporter = PrometheusBuilder::new().with_recommended_naming(true);
    for (name, bounds) in db_layer::metrics::histograms() {
        exporter = exporter.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)?;
    }
    Ok(exporter.install_recorder()?)
}

async fn keep_up(exporter: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        exporter.run_upkeep();
    }
}

async fn open(database: &Database, monitor: MonitorOptions) -> anyhow::Result<Db> {
    let options = Options::new(database.config()?).api(PoolOptions::api().max(CONNECTIONS)).monitor(monitor);
    Ok(db_layer::open(options.backend(PoolOptions::backend().max(1))).await?)
}

fn arm<'a>(runtime: &'a Runtime, name: &str, work: impl Selects) -> Arm<'a> {
    let work = Arc::new(Select(work));
    Arm::new(name, SLICE, move |slice| Load { tasks: CONNECTIONS, slice, timed: true }.run(runtime, &work))
}

#[derive(Debug, Clone)]
struct Ours(Db);

impl Selects for Ours {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(SELECT).bind(n).fetch_one(self.0.api()).await?)
    }
}
