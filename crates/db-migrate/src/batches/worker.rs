//! A worker: it takes ranges, and does their batches.

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use db_core::{Config, RetryBudget};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::ranges::{KeyTexts, Range, Ranges};
use super::session::{Session, Write};
use super::table::Table;
use super::{BatchError, Batches, Change, NAMED, Progress, Refusal, Row};

/// The rows that are read again by one statement.
const AGAIN: usize = 500;
/// The rows that may wait to be tried again. With more, a worker tries them before it goes on.
const WAITING: usize = 10_000;

/// What the workers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Go,
    /// A standby is behind.
    Hold,
    Stop,
}

/// What the workers of a pass share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) table: Arc<Table>,
    batches: Batches,
    signal: watch::Sender<Signal>,
    ranges: Mutex<Ranges>,
    read: AtomicU64,
    written: AtomicU64,
    missed: AtomicU64,
    refused: Mutex<(u64, Vec<Refusal>)>,
    waiting: Mutex<Vec<KeyTexts>>,
}

impl Shared {
    pub(super) fn new(batches: &Batches, config: &Config, table: Arc<Table>, ranges: Ranges) -> Self {
        Self {
            config: config.clone(),
            table,
            batches: batches.clone(),
            signal: watch::Sender::new(Signal::Go),
            ranges: Mutex::new(ranges),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            refused: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    pub(super) fn tell(&self, signal: Signal) {
        self.signal.send_replace(signal);
    }

    pub(super) fn is_stopped(&self) -> bool {
        *self.signal.borrow() == Signal::Stop
    }

    /// Holds the workers, or lets them go on. Returns whether that is new.
    pub(super) fn hold(&self, hold: bool) -> bool {
        let wanted = if hold { Signal::Hold } else { Signal::Go };
        self.signal.send_if_modified(|signal| {
            let is_new = *signal != Signal::Stop && *signal != wanted;
            if is_new {
                *signal = wanted;
            }
            is_new
        })
    }

    pub(super) fn ranges(&self) -> Ranges {
        held(&self.ranges).clone()
    }

    pub(super) fn counts(&self) -> Progress {
        Progress {
            read: self.read.load(Relaxed),
            written: self.written.load(Relaxed),
            estimate: self.table.estimate.and_then(|rows| u64::try_from(rows).ok()),
            waiting: held(&self.waiting).len(),
            rows_per_second: 0.0,
        }
    }

    pub(super) fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }

    pub(super) fn refusals(&self) -> (u64, Vec<Refusal>) {
        held(&self.refused).clone()
    }

    pub(super) fn waiting(&self) -> Vec<KeyTexts> {
        held(&self.waiting).clone()
    }

    /// Waits while the workers are held. Returns false when they are to stop.
    async fn may_go_on(&self) -> bool {
        let mut signal = self.signal.subscribe();
        // The sender lives as long as `self`.
        signal.wait_for(|signal| *signal != Signal::Hold).await.is_ok_and(|signal| *signal == Signal::Go)
    }

    /// Ends early when the workers are to stop.
    async fn pause(&self, pause: Duration) {
        let mut signal = self.signal.subscribe();
        let stopped = signal.wait_for(|signal| *signal == Signal::Stop);
        // The pause is over, or the worker stops.
        timeout(pause, stopped).await.ok();
    }

    /// The next rows of a range, and what is to be stored of them; none at the end of the range.
    async fn page(
        self: &Arc<Self>,
        session: &mut Session,
        range: &Range,
        wanted: usize,
    ) -> Result<Option<Page>, BatchError> {
        let rows = session.read(&self.table, range, wanted).await?;
        let Some((last, _)) = rows.last() else { return Ok(None) };
        let (last, number) = (last.key.clone(), rows.len());
        let pending = rows.into_iter().filter(|(_, is_pending)| *is_pending).map(|(row, _)| row);
        let changes = self.changes(pending.collect()).await?;
        Ok(Some(Page { rows: number, last, changes }))
    }

    /// What is to be stored of these rows. Computed on a thread for blocking work: the program's other tasks would wait for it.
    async fn changes(self: &Arc<Self>, rows: Vec<Row>) -> Result<Changes, BatchError> {
        let shared = Arc::clone(self);
        match spawn_blocking(move || shared.changed(rows)).await {
            Ok(changes) => changes,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, and this task with it.
                Err(_) => pending().await,
            },
        }
    }

    fn changed(&self, rows: Vec<Row>) -> Result<Changes, BatchError> {
        let mut changes = Changes { writes: Vec::with_capacity(rows.len()), refusals: Vec::new() };
        for row in rows {
            match (self.batches.change)(&row) {
                Change::Unchanged => {}
                Change::To(new) => changes.writes.push(Write { row, new }),
                Change::Cannot(reason) => {
                    let refusal = Refusal { key: row.key, reason };
                    if self.batches.stops_at_refusals {
                        return Err(BatchError::Refused { relation: self.table.relation.clone(), refusal });
                    }
                    changes.refusals.push(refusal);
                }
            }
        }
        Ok(changes)
    }

    /// Returns the keys of the rows that were not stored.
    async fn store(&self, session: &mut Session, changes: Changes) -> Result<Vec<KeyTexts>, BatchError> {
        let Changes { writes, refusals } = changes;
        let number = writes.len();
        let left = session.write(&self.table, writes).await?;
        self.written.fetch_add((number - left.len()) as u64, Relaxed);
        self.missed.fetch_add(left.len() as u64, Relaxed);
        let mut refused = held(&self.refused);
        refused.0 += refusals.len() as u64;
        let more = NAMED.saturating_sub(refused.1.len());
        refused.1.extend(refusals.into_iter().take(more));
        Ok(left)
    }

    async fn open(&self) -> Result<Session, BatchError> {
        self.batches.open(&self.config).await
    }
}

/// Takes ranges until none is left, or until it is told to stop.
pub(super) async fn work(shared: Arc<Shared>) -> Result<(), BatchError> {
    let pace = shared.batches.pace;
    let mut link = Link::new(&shared);
    let mut wanted = pace.first_rows();
    loop {
        let taken = held(&shared.ranges).take();
        let Some((nth, mut range)) = taken else { return Ok(()) };
        loop {
            if !shared.may_go_on().await {
                return Ok(());
            }
            let began = Instant::now();
            match link.batch(&range, wanted).await {
                Ok(None) => break,
                Ok(Some((rows, last))) => {
                    link.trouble = None;
                    range = range.advanced(last.clone());
                    held(&shared.ranges).advance(nth, last);
                    let took = began.elapsed();
                    wanted = pace.rows_after(took, rows, wanted);
                    shared.pause(pace.pause_after(took, rows)).await;
                }
                // 57014 is query_canceled: by the session's own statement_timeout.
                Err(error) if error.code().as_deref() == Some("57014") && wanted > 1 => {
                    wanted = (wanted / 4).max(1);
                }
                Err(error) => link.recover(error).await?,
            }
            if held(&shared.waiting).len() > WAITING {
                settle(&mut link).await?;
            }
        }
        held(&shared.ranges).finish(nth);
    }
}

/// Tries the rows that were changed or locked by others, until none is left or the patience ends.
pub(super) async fn settle_all(shared: Arc<Shared>) -> Result<(), BatchError> {
    let mut link = Link::new(&shared);
    settle(&mut link).await
}

async fn settle(link: &mut Link<'_>) -> Result<(), BatchError> {
    let shared = link.shared;
    let began = Instant::now();
    let mut pause = Duration::from_millis(10);
    let mut is_told = false;
    while !held(&shared.waiting).is_empty() && shared.may_go_on().await {
        let mut keys = std::mem::take(&mut *held(&shared.waiting));
        let before = keys.len();
        let mut rest = Vec::new();
        let mut done = Ok(());
        while !keys.is_empty() && done.is_ok() {
            let some = keys.split_off(keys.len().saturating_sub(AGAIN));
            match link.again(&some).await {
                Ok(left) => rest.extend(left),
                Err(error) => {
                    keys.extend(some);
                    done = Err(error);
                }
            }
        }
        rest.extend(keys);
        let left = rest.len();
        held(&shared.waiting).extend(rest);
        match done {
            Ok(()) => link.trouble = None,
            Err(error) => link.recover(error).await?,
        }
        if left == 0 {
            return Ok(());
        }
        if began.elapsed() >= shared.batches.patience {
            break;
        }
        if left < before {
            pause = Duration::from_millis(10);
        } else {
            if !is_told && began.elapsed() > Duration::from_secs(1) {
                is_told = true;
                let relation = &shared.table.relation;
                let first = held(&shared.waiting).first().map(|key| key.join(", "));
                tracing::warn!(
                    relation,
                    rows = left,
                    first,
                    "rows are locked by others, and are tried again"
                );
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        shared.pause(pause).await;
    }
    Ok(())
}

/// What a change function made of some rows.
struct Changes {
    writes: Vec<Write>,
    refusals: Vec<Refusal>,
}

/// The next rows of a range.
struct Page {
    rows: usize,
    /// The last row's key.
    last: KeyTexts,
    changes: Changes,
}

/// A worker's sessions, opened anew after a loss.
struct Link<'a> {
    shared: &'a Arc<Shared>,
    session: Option<Session>,
    /// Reads the next page while one is stored. Only flat out: the time between reading and storing is longer then.
    reader: Option<Session>,
    /// What was read ahead.
    ahead: Option<Page>,
    /// Since the first of the errors that came one after the other.
    trouble: Option<(RetryBudget, Instant)>,
}

impl<'a> Link<'a> {
    fn new(shared: &'a Arc<Shared>) -> Self {
        Self { shared, session: None, reader: None, ahead: None, trouble: None }
    }

    /// Reads, changes and stores the next rows of a range. Returns their number and the last one's key; none at the end of the range.
    async fn batch(&mut self, range: &Range, wanted: usize) -> Result<Option<(usize, KeyTexts)>, BatchError> {
        let shared = self.shared;
        let session = opened(&mut self.session, shared).await?;
        let page = match self.ahead.take() {
            Some(page) => Some(page),
            None => shared.page(session, range, wanted).await?,
        };
        let Some(Page { rows, last, changes }) = page else { return Ok(None) };
        let storing = shared.store(session, changes);
        let left = if shared.batches.pace.is_flat_out() {
            let next = range.clone().advanced(last.clone());
            let reading = async { shared.page(opened(&mut self.reader, shared).await?, &next, wanted).await };
            let (stored, read) = tokio::join!(storing, reading);
            let left = stored?;
            match read {
                Ok(page) => self.ahead = page,
                Err(error) => {
                    // The page is read again by the other session, which gets the same error if it stays.
                    tracing::debug!(relation = shared.table.relation, %error, "could not read ahead");
                    self.reader = None;
                }
            }
            left
        } else {
            storing.await?
        };
        held(&shared.waiting).extend(left);
        shared.read.fetch_add(rows as u64, Relaxed);
        Ok(Some((rows, last)))
    }

    /// Reads rows again, changes and stores them, and returns the keys of those that were not stored.
    async fn again(&mut self, keys: &[KeyTexts]) -> Result<Vec<KeyTexts>, BatchError> {
        let shared = self.shared;
        let session = opened(&mut self.session, shared).await?;
        let rows = session.read_again(&shared.table, keys).await?;
        let changes = shared.changes(rows).await?;
        shared.store(session, changes).await
    }

    /// Pauses after an error that may pass: a lost connection, or a lock on the whole table.
    async fn recover(&mut self, error: BatchError) -> Result<(), BatchError> {
        let batches = &self.shared.batches;
        let (budget, since) =
            self.trouble.get_or_insert_with(|| (RetryBudget::new(batches.retry), Instant::now()));
        if error.is_lost() {
            self.session = None;
            return if budget.pause(&self.shared.config, &batches.name, &error).await {
                Ok(())
            } else {
                Err(error)
            };
        }
        if !error.is_locked() {
            return Err(error);
        }
        if since.elapsed() >= batches.patience {
            return Err(BatchError::Locked {
                relation: self.shared.table.relation.clone(),
                patience: batches.patience,
            });
        }
        self.shared.pause(Duration::from_millis(200)).await;
        Ok(())
    }
}

async fn opened<'s>(
    session: &'s mut Option<Session>,
    shared: &Shared,
) -> Result<&'s mut Session, BatchError> {
    if session.is_none() {
        *session = Some(shared.open().await?);
    }
    Ok(session.as_mut().expect("just opened"))
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
