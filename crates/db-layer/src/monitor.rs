//! The monitor: it looks every 2 s at what all parts count, raises and clears alerts, and logs the figures of the pools. It asks nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use db_core::Observer;
use derive_setters::Setters;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::Db;
use crate::alerts::readings::History;
use crate::alerts::{Alert, Change, Severity, Watch};
use crate::db::WeakDb;
use crate::figures::Figures;
use crate::statements::{StatementCounts, Statements};

/// How often alerts are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// What is watched of an open database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct MonitorOptions {
    /// How often the figures of the pools are logged (default 60 s, at least 2 s; zero: never).
    pub log_every: Duration,
    /// Whether figures in which nothing has changed since they were logged last are left out (default false).
    pub quiet: bool,
    /// The most statements that are counted (default 500; 0 counts none). When there are more, a twentieth is forgotten, those with the
    /// least use. Threads count in up to eight groups, each of which may know as many.
    pub statements: usize,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        Self { log_every: Duration::from_mins(1), quiet: false, statements: 500 }
    }
}

/// The task, which ends with this, and what it has found.
#[derive(Debug)]
pub(crate) struct Monitor {
    options: MonitorOptions,
    statements: Option<Arc<Statements>>,
    watch: Arc<Mutex<Watch>>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Monitor {
    pub(crate) fn new(options: MonitorOptions) -> Self {
        let statements = (options.statements > 0).then(|| Arc::new(Statements::new(options.statements)));
        Self { options, statements, watch: Arc::default(), task: Mutex::default() }
    }

    /// Starts it, once the database is there.
    pub(crate) fn start(&self, db: &Db) {
        if let Some(statements) = &self.statements {
            for pool in db.all_pools() {
                pool.observe(Arc::clone(statements) as Arc<dyn Observer>);
            }
        }
        let task = tokio::spawn(watch(db.downgrade(), Arc::clone(&self.watch), self.options));
        *self.task() = Some(AbortOnDropHandle::new(task));
    }

    /// Ends the task. What is raised stays so: it may say why the shutdown takes long.
    pub(crate) async fn stop(&self) {
        let task = self.task().take();
        if let Some(task) = task {
            task.abort();
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::warn!(%error, "the monitor has ended before its time");
            }
        }
    }

    fn task(&self) -> MutexGuard<'_, Option<AbortOnDropHandle<()>>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "people read when an alert was raised")]
async fn watch(db: WeakDb, watch: Arc<Mutex<Watch>>, options: MonitorOptions) {
    let began = Instant::now();
    let mut history = History::default();
    let mut figures = Figures::new(options);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(db) = db.upgrade() else { return };
        let readings = history.read(&db, began.elapsed());
        let changes = lock(&watch).step(began.elapsed(), SystemTime::now(), &readings);
        for change in &changes {
            log(db.bus().namespace(), change);
        }
        figures.log(&db, began.elapsed());
    }
}

fn log(namespace: &str, change: &Change) {
    match change {
        Change::Raised(alert) => {
            let Alert { rule, pool, .. } = alert;
            let (name, pool) = (rule.name, pool.as_deref());
            match rule.severity {
                Severity::Critical => {
                    tracing::error!(target: "db_layer::alerts", name, pool, namespace, "alert: {alert}. {}", rule.action);
                }
                Severity::Warning => {
                    tracing::warn!(target: "db_layer::alerts", name, pool, namespace, "alert: {alert}. {}", rule.action);
                }
            }
        }
        Change::Cleared(Alert { rule, pool, .. }) => {
            let (name, pool) = (rule.name, pool.as_deref());
            tracing::info!(target: "db_layer::alerts", name, pool, namespace, "alert cleared");
        }
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Db {
    /// The [alerts](crate::alerts) that are raised, as the last look of the monitor has found. It looks every 2 s, until the pools
    /// begin to close.
    #[must_use]
    pub fn alerts(&self) -> Vec<Alert> {
        lock(&self.monitor().watch).alerts()
    }

    /// The statements that the pools ran, with what each has cost and the lines that asked for it. `None` if
    /// [they are not counted](MonitorOptions::statements).
    #[must_use]
    pub fn statement_counts(&self) -> Option<StatementCounts> {
        self.monitor().statements.as_ref().map(|statements| statements.counts())
    }

    /// Begins to count statements anew.
    pub fn reset_statement_counts(&self) {
        if let Some(statements) = &self.monitor().statements {
            statements.reset();
        }
    }
}
