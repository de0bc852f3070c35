//! The histograms of one pool.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use db_core::{Acquired, ErrorType, Observer, Pool, Released, StatementDone};
use metrics::{Histogram, Label, histogram};

use super::MeasureOptions;
use super::batched::Batched;
use super::names::{self, Metric};

/// The most different errors of a pool.
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
    by_name: bool,
    done: Statements,
    /// Statements that succeeded, by name.
    named: Kept<&'static str, Statements>,
    failed: Kept<(Option<&'static str>, ErrorType), Histogram>,
    create: Histogram,
    wait: Batched,
    queue: Batched,
    used: Batched,
}

/// The histograms of statements that succeeded.
#[derive(Debug)]
struct Statements {
    duration: Batched,
    rows: Batched,
}

impl PoolObserver {
    pub(crate) fn new(pool: &Pool, MeasureOptions { by_name, .. }: MeasureOptions) -> Self {
        let labels = labels(pool);
        let of_pool = |metric: Metric| histogram!(metric.name, vec![pool_label(pool)]);
        Self {
            done: Statements::new(&labels),
            labels,
            by_name,
            named: Kept::new(NAMES),
            failed: Kept::new(ERRORS),
            create: of_pool(names::CREATE_TIME),
            wait: Batched::new(of_pool(names::WAIT_TIME)),
            queue: Batched::new(of_pool(names::QUEUE_TIME)),
            used: Batched::new(of_pool(names::USE_TIME)),
        }
    }

    /// Hands on the values that wait.
    pub(crate) fn flush(&self) {
        let Self { done, named, wait, queue, used, .. } = self;
        for batched in [wait, queue, used] {
            batched.flush();
        }
        done.flush();
        named.each(|those| those.flush());
    }

    /// The labels, with the name of the work if there is one.
    fn labels_with(&self, name: Option<&'static str>) -> Vec<Label> {
        let mut labels = self.labels.clone();
        labels.extend(name.map(|name| Label::from_static_parts("db.query.summary", name)));
        labels
    }

    fn failed(&self, name: Option<&'static str>, error: ErrorType, took: Duration) {
        let make = |key: Option<&(Option<&'static str>, ErrorType)>| {
            let mut labels = self.labels_with(match key {
                Some((name, _)) => *name,
                None => name.map(|_| OTHER),
            });
            let error = key.map(|(_, error)| *error);
            let kind = error.map_or(OTHER.to_owned(), |error| error.to_string());
            labels.push(Label::new("error.type", kind));
            let state = error.and_then(|error| error.sql_state().map(str::to_owned));
            labels.extend(state.map(|state| Label::new("db.response.status_code", state)));
            histogram!(names::DURATION.name, labels)
        };
        self.failed.with((name, error), make, |duration| duration.record(took));
    }
}

impl Statements {
    fn new(labels: &[Label]) -> Self {
        let of = |metric: Metric| Batched::new(histogram!(metric.name, labels.to_vec()));
        Self { duration: of(names::DURATION), rows: of(names::RETURNED_ROWS) }
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody has so many rows")]
    fn record(&self, took: Duration, rows: u64) {
        self.duration.record(took);
        self.rows.record(rows as f64);
    }

    fn flush(&self) {
        self.duration.flush();
        self.rows.flush();
    }
}

impl Observer for PoolObserver {
    fn acquired(&self, acquired: &Acquired) {
        self.wait.record(acquired.wait());
        self.queue.record(acquired.queue);
    }

    fn released(&self, released: &Released) {
        self.used.record(released.held);
    }

    fn dialled(&self, took: Duration) {
        self.create.record(took);
    }

    fn statement(&self, statement: &StatementDone<'_>) {
        let StatementDone { name, took, rows, error, .. } = *statement;
        let name = name.filter(|_| self.by_name);
        match (error, name) {
            (Some(error), name) => self.failed(name, error, took),
            (None, None) => self.done.record(took, rows),
            (None, Some(name)) => {
                let make = |key: Option<&&'static str>| {
                    Statements::new(&self.labels_with(Some(key.copied().unwrap_or(OTHER))))
                };
                self.named.with(name, make, |those| those.record(took, rows));
            }
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

/// Handles by key, up to a number of keys. All further keys share one handle.
#[derive(Debug)]
struct Kept<K, V> {
    most: usize,
    by_key: RwLock<HashMap<K, V>>,
}

impl<K: Copy + Eq + Hash, V> Kept<K, V> {
    fn new(most: usize) -> Self {
        Self { most, by_key: RwLock::default() }
    }

    fn each(&self, run: impl Fn(&V)) {
        self.by_key.read().unwrap_or_else(PoisonError::into_inner).values().for_each(run);
    }

    /// Uses the handle of a key, made if there is none. `make` gets `None` for the handle of all further keys.
    fn with(&self, key: K, make: impl FnOnce(Option<&K>) -> V, run: impl FnOnce(&V)) {
        if let Some(kept) = self.by_key.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return run(kept);
        }
        let mut all = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() < self.most || all.contains_key(&key) {
            run(all.entry(key).or_insert_with(|| make(Some(&key))));
        } else {
            drop(all);
            run(&make(None));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_handle_is_made_once_for_a_key_and_keys_beyond_the_most_share_one() {
        let kept = Kept::new(2);
        let count = Cell::new(0);
        let make = |key: Option<&u32>| {
            count.set(count.get() + 1);
            key.copied()
        };
        let of = |key| {
            let found = Cell::new(None);
            kept.with(key, make, |handle: &Option<u32>| found.set(*handle));
            found.get()
        };

        assert_eq!([1, 2, 1, 2].map(of), [Some(1), Some(2), Some(1), Some(2)]);
        assert_eq!(count.get(), 2);
        assert_eq!([3, 4, 1].map(of), [None, None, Some(1)]);
    }
}
