//! Changes rows of a table in batches while others read and write them.
//!
//! [`Batches`] walks a table by its key. It gives each row to a function, and stores what the function returns if nobody has
//! changed the row since it was read. So a concurrent writer keeps its value, and the row is read again; then it is stored if it still has
//! the values that the function was given, whatever happens to its other columns.
//!
//! ```
//! # db_testkit::run(async |db| {
//! # sqlx::raw_sql("create table people (id int primary key, name text); insert into people values (1, 'Ada')")
//! #     .execute(&db.pool()).await.unwrap();
//! # let config = db_core::Config::from_url(&db.url()).unwrap();
//! use db_migrate::batches::{Batches, Change};
//!
//! let upper = Batches::new("upper-case names", "people", |row| match row.text(0) {
//!     Some(name) if name != name.to_uppercase() => Change::To(vec![Some(name.to_uppercase().into_bytes())]),
//!     _ => Change::Unchanged,
//! });
//! let report = upper.writes("name").run(&config, std::future::pending()).await?;
//!
//! assert_eq!((report.written, report.is_finished), (1, true));
//! # Ok::<_, db_migrate::batches::BatchError>(())
//! # }).unwrap();
//! ```
//!
//! # What others notice
//!
//! A batch is one statement that takes about 1 ms, or 100 ms without pauses ([`Pace`]); its rows are locked for writers until it is stored. It never waits
//! for a row longer than 100 ms: locked rows are passed over, and tried again later. Rows that stay locked are named in the
//! [`Report`]. Triggers fire for each stored row, unless they are switched off. Each stored row is a new version of it, so vacuum has
//! work afterwards.
//!
//! # A run that is ended
//!
//! Progress is stored once a second in the table `batch_runs` ([`SCHEMA`](crate::SCHEMA)), and a run of the same name resumes there. It
//! then passes over the whole table once more, for rows that were locked when it was ended. Without the table, a run begins
//! again. Work that is done is done either way: the function sees that a row needs no change.

mod error;
mod pace;
mod ranges;
mod record;
mod session;
mod table;
mod worker;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use db_core::{Config, ConnectRetry, Pooler, RetryBudget};
use sqlx::Connection;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use ranges::{KeyTexts, Ranges};
use record::Record;
use session::Session;
use table::{Column, Table, failed};
use worker::{Shared, Signal};

use crate::session::answer;

pub use error::BatchError;
pub use pace::Pace;
pub(crate) use session::detect_lost_client;

/// How often progress is stored and reported, and the standbys are looked at.
const NOTE: Duration = Duration::from_secs(1);
/// The rows that a report names.
const NAMED: usize = 1000;

type ChangeRow = Arc<dyn Fn(&Row) -> Change + Send + Sync>;
pub(crate) type ShowProgress = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Work on the rows of one table.
#[derive(Clone)]
pub struct Batches {
    name: String,
    relation: String,
    key: Vec<String>,
    columns: Vec<Column>,
    pending: Option<String>,
    change: ChangeRow,
    pace: Pace,
    patience: Duration,
    stops_at_refusals: bool,
    without_triggers: bool,
    retry: ConnectRetry,
    show: Option<ShowProgress>,
    /// The role that the sessions take.
    role: Option<String>,
}

/// A row as it was read.
pub struct Row {
    key: KeyTexts,
    values: Vec<Option<Vec<u8>>>,
    /// The transaction that stored it, if the row is to be compared by that.
    version: Option<String>,
}

/// What is to be done with a row.
pub enum Change {
    /// The row stays as it is.
    Unchanged,
    /// The new value of each column that is [written](Batches::writes), in their order: bytes for a `bytea`, else the text of the
    /// value; `None` is null.
    To(Vec<Option<Vec<u8>>>),
    /// The row cannot be changed, and why. The text is shown and logged, so it must not repeat a value.
    Cannot(String),
}

/// A row that cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The texts of its key.
    pub key: Vec<String>,
    /// Why.
    pub reason: String,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Rows that were looked at.
    pub read: u64,
    /// Rows that were stored.
    pub written: u64,
    /// The number of rows of the table, as the server estimates it. `None` when the table was never analyzed.
    pub estimate: Option<u64>,
    /// Rows that were looked at in the last second.
    pub rows_per_second: f64,
    /// Rows that wait to be tried again.
    pub waiting: usize,
}

/// What a run did.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// Whether the run came to its end. Otherwise it was told to stop, and resumes.
    pub is_finished: bool,
    /// Rows that were looked at, those twice that were looked at twice.
    pub read: u64,
    /// Rows that were stored.
    pub written: u64,
    /// How often a row was changed or locked by somebody else between reading and storing.
    pub missed: u64,
    /// Rows that cannot be changed: all of them, of which [`refusals`](Self::refusals) has the first 1000.
    pub refused: u64,
    /// The rows that cannot be changed, and why.
    pub refusals: Vec<Refusal>,
    /// The keys of rows that stayed locked, or changed again and again, until the end of the patience.
    pub locked: Vec<Vec<String>>,
    /// How long the run took.
    pub took: Duration,
}

impl Batches {
    /// Gives each row of a table to `change`. `name` says what is done, and has the progress on record: a run of the same name
    /// resumes. `relation` is the table as SQL, quoted where necessary.
    ///
    /// `change` may be called several times for a row, and must return `Unchanged` for a row that is done.
    pub fn new(
        name: impl Into<String>,
        relation: impl Into<String>,
        change: impl Fn(&Row) -> Change + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            relation: relation.into(),
            key: Vec::new(),
            columns: Vec::new(),
            pending: None,
            change: Arc::new(change),
            pace: Pace::default(),
            patience: Duration::from_mins(1),
            stops_at_refusals: false,
            without_triggers: false,
            retry: ConnectRetry::default(),
            show: None,
            role: None,
        }
    }

    /// Adds a column whose values are read and stored.
    #[must_use]
    pub fn writes(mut self, column: impl Into<String>) -> Self {
        self.columns.push(Column { name: column.into(), is_written: true });
        self
    }

    /// Adds a column whose values are read. A row is not stored if one of them has changed since.
    #[must_use]
    pub fn reads(mut self, column: impl Into<String>) -> Self {
        self.columns.push(Column { name: column.into(), is_written: false });
        self
    }

    /// Walks by these columns (default: the primary key). They must be unique and not null, and their values must not change.
    #[must_use]
    pub fn key(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.key = columns.into_iter().map(Into::into).collect();
        self
    }

    /// An SQL condition for the rows that may need a change. Values of other rows are not sent.
    #[must_use]
    pub fn pending(mut self, condition: impl Into<String>) -> Self {
        self.pending = Some(condition.into());
        self
    }

    /// How fast to go.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// How long to try rows that others have locked, at the end of a pass, and a table that is locked as a whole (default 1 min).
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Ends with [`BatchError::Refused`] at the first row that cannot be changed. By default, such rows are listed in the report.
    #[must_use]
    pub fn stop_at_refusals(mut self, stop: bool) -> Self {
        self.stops_at_refusals = stop;
        self
    }

    /// Fires no triggers (`session_replication_role = replica`), but for those that are enabled as `ALWAYS` or `REPLICA`. The role
    /// must be allowed to, as a superuser is. By default, they fire.
    #[must_use]
    pub fn without_triggers(mut self, without: bool) -> Self {
        self.without_triggers = without;
        self
    }

    /// How long to try to reach the server, at the beginning and after each loss of a connection.
    #[must_use]
    pub fn retry(mut self, retry: ConnectRetry) -> Self {
        self.retry = retry;
        self
    }

    /// Calls `show` about once a second.
    #[must_use]
    pub fn on_progress(mut self, show: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.show = Some(Arc::new(show));
        self
    }

    /// As [`Self::on_progress`], unless the program does so.
    pub(crate) fn or_on_progress(self, show: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        if self.show.is_some() { self } else { self.on_progress(show) }
    }

    /// Runs as this role.
    pub(crate) fn role(mut self, role: Option<&str>) -> Self {
        self.role = role.map(str::to_owned);
        self
    }

    /// Runs until every row was looked at, or until `stop` ends, which it then does within a batch. It has connections of its own: one
    /// for each worker, and one that holds the lock of the columns.
    ///
    /// Dropping the future closes the connections. A batch that was sent is stored or not, as a whole; a later run goes on.
    ///
    /// # Errors
    ///
    /// [`BatchError`]. What was stored stays.
    pub async fn run(&self, config: &Config, stop: impl Future<Output = ()>) -> Result<Report, BatchError> {
        if config.pooler() != Pooler::None {
            return Err(BatchError::Pooled { to: config.to_string() });
        }
        let mut stop = pin!(stop);
        let began = Instant::now();
        let mut control = self.open(config).await?;
        let table = Arc::new(self.find(&mut control).await?);
        self.lock(&mut control, &table).await?;
        if self.pace.max_lag().is_some() {
            record::lag(control.connection(), &self.relation).await?;
        }
        let record = Record::open(control.connection(), &self.name, &self.relation).await?;
        let mut resumed = record.unfinished(control.connection()).await?.filter(Ranges::is_begun);

        let mut report = Report::default();
        let passes = if resumed.is_some() { 2 } else { 1 };
        for pass in 1..=passes {
            let ranges = if let Some(ranges) = resumed.take() {
                ranges
            } else {
                let ranges = self.ranges(&mut control, &table).await?;
                record.begin(control.connection(), &table, &ranges).await?;
                ranges
            };
            let shared = Arc::new(Shared::new(self, config, Arc::clone(&table), ranges));
            // What the last pass refused is what is to be told of.
            (report.refused, report.refusals) = (0, Vec::new());
            let is_done = self.pass(&shared, &mut control, &record, stop.as_mut(), &mut report).await?;
            report.is_finished = is_done && pass == passes;
            if !is_done {
                break;
            }
        }
        report.took = began.elapsed();
        Ok(report)
    }

    /// Runs the workers to their end. Returns false if they were stopped before.
    async fn pass(
        &self,
        shared: &Arc<Shared>,
        control: &mut Session,
        record: &Record<'_>,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
        report: &mut Report,
    ) -> Result<bool, BatchError> {
        let mut workers = JoinSet::new();
        for _ in 0..self.pace.number_of_workers() {
            workers.spawn(worker::work(Arc::clone(shared)));
        }
        // Rows that others have locked are tried again when all else is done.
        let mut is_settling = false;
        let mut ended = Ok(());
        let mut tick = interval(NOTE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut noted = (Progress::default(), Instant::now());
        loop {
            tokio::select! {
                done = workers.join_next() => match done {
                    Some(done) => {
                        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                        if done.is_err() && ended.is_ok() {
                            ended = done;
                            shared.tell(Signal::Stop);
                        }
                    }
                    None if !is_settling && !shared.is_stopped() => {
                        is_settling = true;
                        workers.spawn(worker::settle_all(Arc::clone(shared)));
                    }
                    None => break,
                },
                () = stop.as_mut(), if !shared.is_stopped() => shared.tell(Signal::Stop),
                _ = tick.tick(), if ended.is_ok() => {
                    let looked = self.look(shared, control, record, &mut noted).await;
                    if let Err(error) = looked {
                        let mended =
                            if error.is_lost() { self.reopen(control, shared, error).await } else { Err(error) };
                        if mended.is_err() {
                            ended = mended;
                            shared.tell(Signal::Stop);
                        }
                    }
                }
            }
        }
        let is_done = ended.is_ok() && !shared.is_stopped();
        let counts = shared.counts();
        report.read += counts.read;
        report.written += counts.written;
        report.missed += shared.missed();
        (report.refused, report.refusals) = shared.refusals();
        report.locked = if is_done { shared.waiting() } else { Vec::new() };
        let since = Progress {
            read: counts.read - noted.0.read,
            written: counts.written - noted.0.written,
            ..counts
        };
        if let Err(error) = record.note(control.connection(), since, &shared.ranges(), is_done).await {
            tracing::warn!(%error, "the progress of a run was not stored");
        }
        if let Some(show) = &self.show {
            show(&counts);
        }
        ended.map(|()| is_done)
    }

    /// Looks whether the session that holds the lock lives, notes and shows the progress, and holds the workers while a standby is
    /// behind.
    async fn look(
        &self,
        shared: &Shared,
        control: &mut Session,
        record: &Record<'_>,
        noted: &mut (Progress, Instant),
    ) -> Result<(), BatchError> {
        // Without a record and a limit for standbys, nothing else is sent in it.
        answer(control.connection().ping()).await.map_err(failed("hold the lock of", &self.relation))?;
        if let Some(limit) = self.pace.max_lag() {
            let lag = record::lag(control.connection(), &self.relation).await?.unwrap_or(0);
            if shared.hold(lag > limit) {
                tracing::info!(
                    run = self.name,
                    lag_bytes = lag,
                    limit_bytes = limit,
                    is_held = lag > limit,
                    "standbys"
                );
            }
        }
        let (before, at) = *noted;
        let mut counts = shared.counts();
        #[expect(clippy::cast_precision_loss, reason = "a rate that is shown")]
        let read = (counts.read - before.read) as f64;
        counts.rows_per_second = read / at.elapsed().as_secs_f64().max(0.001);
        *noted = (counts, Instant::now());
        let since =
            Progress { read: counts.read - before.read, written: counts.written - before.written, ..counts };
        record.note(control.connection(), since, &shared.ranges(), false).await?;
        if let Some(show) = &self.show {
            show(&counts);
        }
        Ok(())
    }

    async fn open(&self, config: &Config) -> Result<Session, BatchError> {
        self.open_within(config, self.retry).await
    }

    async fn open_within(&self, config: &Config, retry: ConnectRetry) -> Result<Session, BatchError> {
        let role = self.role.as_deref();
        Session::open(config, retry, &self.relation, role, self.without_triggers).await
    }

    /// The size of a table that is locked as a whole is not told.
    async fn find(&self, control: &mut Session) -> Result<Table, BatchError> {
        let began = Instant::now();
        loop {
            let pending = self.pending.as_deref();
            let found =
                Table::find(control.connection(), &self.relation, &self.key, &self.columns, pending).await;
            match found {
                Err(error) if error.is_locked() && began.elapsed() < self.patience => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) if error.is_locked() => {
                    return Err(BatchError::Locked {
                        relation: self.relation.clone(),
                        patience: self.patience,
                    });
                }
                other => return other,
            }
        }
    }

    async fn lock(&self, control: &mut Session, table: &Table) -> Result<(), BatchError> {
        let written: Vec<&str> =
            self.columns.iter().filter(|column| column.is_written).map(|column| &*column.name).collect();
        record::lock(control.connection(), table, &written).await
    }

    /// Replaces the session that holds the lock. The server may need a moment to see that the old one is gone.
    async fn reopen(
        &self,
        control: &mut Session,
        shared: &Shared,
        mut error: BatchError,
    ) -> Result<(), BatchError> {
        let mut budget = RetryBudget::new(self.retry);
        while budget.pause(&shared.config, &self.name, &error).await {
            let reopened = async {
                *control = self.open_within(&shared.config, budget.left()).await?;
                self.lock(control, &shared.table).await
            };
            match reopened.await {
                Ok(()) => return Ok(()),
                Err(next) if next.is_lost() || matches!(next, BatchError::Busy { .. }) => error = next,
                Err(next) => return Err(next),
            }
        }
        Err(error)
    }

    /// Several for each worker, so that all have work until the end.
    async fn ranges(&self, control: &mut Session, table: &Table) -> Result<Ranges, BatchError> {
        let workers = self.pace.number_of_workers();
        if workers == 1 {
            return Ok(Ranges::new(&[]));
        }
        control
            .cuts(table, workers * 4)
            .await
            .map(|cuts| Ranges::new(&cuts))
            .map_err(failed("look at the keys of", &self.relation))
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches")
            .field("name", &self.name)
            .field("relation", &self.relation)
            .finish_non_exhaustive()
    }
}

impl Row {
    /// The text of each key column, in the order of [`Batches::key`].
    #[must_use]
    pub fn key(&self) -> &[String] {
        &self.key
    }

    /// The value of the nth column: its bytes for a `bytea`, else its text. `None` is null.
    ///
    /// # Panics
    ///
    /// Without an nth column.
    #[must_use]
    pub fn bytes(&self, nth: usize) -> Option<&[u8]> {
        self.values[nth].as_deref()
    }

    /// The text of the nth column. `None` is null, or a `bytea` that is no text.
    ///
    /// # Panics
    ///
    /// Without an nth column.
    #[must_use]
    pub fn text(&self, nth: usize) -> Option<&str> {
        self.bytes(nth).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("key", &self.key).finish_non_exhaustive()
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => f.write_str("Unchanged"),
            Self::To(values) => write!(f, "To({} values)", values.len()),
            Self::Cannot(reason) => write!(f, "Cannot({reason:?})"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the row ({}) cannot be changed: {}", self.key.join(", "), self.reason)
    }
}
