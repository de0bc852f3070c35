//! Metrics of all parts, by the [`metrics`](https://docs.rs/metrics) facade, for whichever exporter the program installs.
//!
//! ```
//! # db_testkit::run(async |test| {
//! # let config = db_layer::Config::from_url(&test.url())?;
//! use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
//!
//! let mut exporter = PrometheusBuilder::new().with_recommended_naming(true);
//! for (name, bounds) in db_layer::metrics::histograms() {
//!     exporter = exporter.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)?;
//! }
//! let exporter = exporter.install_recorder()?;
//!
//! let db = db_layer::open(db_layer::Options::new(config)).await?;
//! db.measure();
//!
//! // For each scrape:
//! db.gauges();
//! let text = exporter.render();
//! assert!(text.contains("db_client_connection_max{db_client_connection_pool_name=\"api\"} 10"), "{text}");
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! [`all`] lists the metrics. Their names are OpenTelemetry's (semantic conventions 1.44) where it has one.
//!
//! # Labels
//!
//! No label has a text of a statement, a value, a secret, or anything else that a client could choose.
//!
//! | label | of | values |
//! |---|---|---|
//! | `db.client.connection.pool.name` | pools and statements | the names of the pools: name them differently if a process opens two databases |
//! | `db.system.name`, `db.namespace`, `server.address`, `server.port` | statements | `postgresql`, the database, the host, the port unless it is 5432 |
//! | `error.type`, `db.response.status_code` | statements that failed | the SQLSTATE, or the [class](db_core::Class) of an error that the server did not send; a hundred different ones under one name at most, then `_OTHER` |
//! | `db.query.summary` | statements, [by choice](MeasureOptions::by_name) | the names that [`Handle::named`](db_core::Handle::named) gave; a thousand at most, then `_OTHER` |
//! | `db.client.connection.state` | `db.client.connection.count` | `idle`, `used` |
//! | `reason` | closed connections, gaps, keys | one of a fixed list |
//! | `pool`, `state` | `db_pool_connections` | the pool; `total`, `idle`, `waiting` |
//! | `namespace` | bus, event logs, migrations, keys, readiness, Redis | the namespace of the bus: name it differently if a process opens two databases |

mod batched;
mod gauges;
mod kept;
mod names;
mod pool;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use db_core::{Observer, Pool};
use derive_setters::Setters;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use self::gauges::Gauges;
pub use self::names::{Kind, Metric, all, histograms};
use self::pool::PoolObserver;
use crate::Db;

/// How a database is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct MeasureOptions {
    /// Whether the names of [`Handle::named`](db_core::Handle::named) are a label of statements, `db.query.summary` (default false). Each name
    /// costs a time series for each size of each histogram.
    pub by_name: bool,
    /// How often a task sets counters and gauges (default 5 s, at least 0.1 s). [`Db::gauges`] sets them for a scrape.
    pub every: Duration,
}

impl Default for MeasureOptions {
    fn default() -> Self {
        Self { by_name: false, every: Duration::from_secs(5) }
    }
}

/// What measures an open database.
#[derive(Debug, Default)]
pub(crate) struct Measuring(OnceLock<Measured>);

#[derive(Debug)]
struct Measured {
    pools: Vec<Arc<PoolObserver>>,
    gauges: Gauges,
    /// Ends with the database.
    _task: AbortOnDropHandle<()>,
}

impl Measuring {
    fn set_gauges(&self, db: &Db) {
        if let Some(Measured { pools, gauges, .. }) = self.0.get() {
            gauges.set(db);
            for pool in pools {
                pool.flush();
            }
        }
    }
}

impl Db {
    /// Measures all parts from now on, by the recorder that the program has installed before. Counters begin with what was counted since the
    /// database was opened. Calls after the first change nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn measure(&self) {
        self.measure_with(MeasureOptions::default());
    }

    /// [`measure`](Self::measure), with options.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn measure_with(&self, options: MeasureOptions) {
        let runtime = tokio::runtime::Handle::current();
        self.measuring().0.get_or_init(|| {
            names::describe();
            let observed = |pool: &Pool| {
                let observer = Arc::new(PoolObserver::new(pool, options));
                pool.observe(Arc::clone(&observer) as Arc<dyn Observer>);
                observer
            };
            let pools = self.all_pools().map(observed).collect();
            let gauges = Gauges::new(self);
            gauges.set(self);
            let db = self.downgrade();
            let task = runtime.spawn(async move {
                let mut ticks = interval(options.every.max(Duration::from_millis(100)));
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    let Some(db) = db.upgrade() else { return };
                    db.gauges();
                }
            });
            Measured { pools, gauges, _task: AbortOnDropHandle::new(task) }
        });
    }

    /// Sets all counters and gauges to what they are now, for a scrape. Does nothing before [`measure`](Self::measure).
    pub fn gauges(&self) {
        self.measuring().set_gauges(self);
    }
}
