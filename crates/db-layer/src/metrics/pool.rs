//! The histograms of one pool.

use std::sync::Arc;
use std::time::Duration;

use db_core::{Acquired, ErrorType, Observer, Pool, Released, StatementDone};
use metrics::{Histogram, Label, histogram};

use super::MeasureOptions;
use super::batched::Batched;
use super::kept::Kept;
use super::names::{self, Metric};

/// The most different errors under one name of work.
const ERRORS: usize = 100;

/// The most different names of work of a pool.
const NAMES: usize = 1000;

/// OpenTelemetry's value for what has no value of its own.
const OTHER: &str = "_OTHER";

/// The default port, which is not a label.
const PORT: u16 = 5432;

/// Fills the histograms of a pool. A handle is looked up once and kept, since a look-up by labels costs as much as five recordings.
#[derive(Debug)]
pub(crate) struct PoolObserver {
    labels: Vec<Label>,
    /// Statements without a name, or all of them if names are no label.
    unnamed: Work,
    named: Option<Kept<&'static str, Arc<Work>>>,
    create: Histogram,
    /// The whole wait, and what of it was queueing.
    wait: Batched<2>,
    used: Batched<1>,
}

/// The histograms of statements under one name.
#[derive(Debug)]
struct Work {
    labels: Vec<Label>,
    /// Duration and rows of those that succeeded.
    done: Batched<2>,
    failed: Kept<ErrorType, Arc<Histogram>>,
}

impl PoolObserver {
    pub(crate) fn new(pool: &Pool, MeasureOptions { by_name, .. }: MeasureOptions) -> Self {
        let labels = labels(pool);
        let of_pool = |metric: Metric| histogram!(metric.name, vec![pool_label(pool)]);
        Self {
            unnamed: Work::new(labels.clone()),
            named: by_name.then(|| Kept::new(NAMES)),
            labels,
            create: of_pool(names::CREATE_TIME),
            wait: Batched::new([of_pool(names::WAIT_TIME), of_pool(names::QUEUE_TIME)]),
            used: Batched::new([of_pool(names::USE_TIME)]),
        }
    }

    /// Hands on the values that wait.
    pub(crate) fn flush(&self) {
        self.wait.flush();
        self.used.flush();
        self.unnamed.done.flush();
        for work in self.named.iter().flat_map(Kept::all) {
            work.done.flush();
        }
    }

    /// The histograms of this name.
    fn named(&self, named: &Kept<&'static str, Arc<Work>>, name: &'static str) -> Arc<Work> {
        named.get(name, |name| {
            let mut labels = self.labels.clone();
            labels.push(Label::from_static_parts("db.query.summary", name.unwrap_or(OTHER)));
            Arc::new(Work::new(labels))
        })
    }
}

impl Work {
    fn new(labels: Vec<Label>) -> Self {
        let of = |metric: Metric| histogram!(metric.name, labels.clone());
        let done = Batched::new([of(names::DURATION), of(names::RETURNED_ROWS)]);
        Self { done, labels, failed: Kept::new(ERRORS) }
    }

    #[expect(clippy::cast_precision_loss, reason = "a result has fewer than 2^53 rows")]
    fn record(&self, took: Duration, rows: u64, error: Option<ErrorType>) {
        match error {
            None => self.done.record([took.as_secs_f64(), rows as f64]),
            Some(error) => self.failed.get(error, |error| Arc::new(self.of_error(error))).record(took),
        }
    }

    /// The durations of statements that failed in this way, or in others than those that are told apart.
    fn of_error(&self, error: Option<ErrorType>) -> Histogram {
        let mut labels = self.labels.clone();
        let kind = error.map_or(OTHER.to_owned(), |error| error.to_string());
        labels.push(Label::new("error.type", kind));
        let state = error.and_then(|error| error.sql_state().map(str::to_owned));
        labels.extend(state.map(|state| Label::new("db.response.status_code", state)));
        histogram!(names::DURATION.name, labels)
    }
}

impl Observer for PoolObserver {
    fn acquired(&self, acquired: &Acquired) {
        self.wait.record([acquired.wait(), acquired.queue].map(|time| time.as_secs_f64()));
    }

    fn released(&self, released: &Released) {
        self.used.record([released.held.as_secs_f64()]);
    }

    fn dialled(&self, took: Duration) {
        self.create.record(took);
    }

    fn statement(&self, statement: &StatementDone<'_>) {
        let StatementDone { name, took, rows, error, .. } = *statement;
        match self.named.as_ref().zip(name) {
            Some((named, name)) => self.named(named, name).record(took, rows, error),
            None => self.unnamed.record(took, rows, error),
        }
    }
}

pub(crate) fn pool_label(pool: &Pool) -> Label {
    Label::new("db.client.connection.pool.name", pool.name().to_owned())
}

/// The labels of a pool's statements.
fn labels(pool: &Pool) -> Vec<Label> {
    let address = pool.config().as_sqlx();
    let host = match address.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => address.get_host().to_owned(),
    };
    let mut labels = vec![
        Label::from_static_parts("db.system.name", "postgresql"),
        Label::new("db.namespace", pool.config().database().to_owned()),
        Label::new("server.address", host),
    ];
    if address.get_port() != PORT {
        labels.push(Label::new("server.port", address.get_port().to_string()));
    }
    labels.push(pool_label(pool));
    labels
}
