//! The readers of all logs that are followed in this process, and the task that polls the heads of these logs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use db_core::Pool;
use db_notify::{Bus, Subscription};
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

use super::page_reads::{EventOptions, PageReads};
use super::reader::{Live, Reader, Tail};
use crate::deadline::limited;
use crate::limits::{POLL_FLOOR, pauses};
use crate::read::WHAT;
use crate::{Error, Event, Head, LogId};

/// The shortest time between two polls of the heads.
const POLL_PACE: Duration = Duration::from_millis(200);

/// For how long the age of the newest event says something: it is not read again before the next one.
const LATELY: Duration = Duration::from_mins(1);

/// The pool, the readers of followed logs, and the counts of what reading has cost.
pub(crate) struct Registry {
    pool: Pool,
    page_reads: PageReads,
    readers: Mutex<HashMap<LogId, Weak<Reader>>>,
    pages: AtomicU64,
    head_polls: AtomicU64,
    /// When the newest event of a log was last read, and how old it was.
    newest: Mutex<Option<(Instant, Duration)>>,
}

impl Registry {
    pub(crate) fn new(pool: Pool, options: EventOptions) -> Self {
        let page_reads = PageReads::new(&pool, options);
        let zero = || AtomicU64::new(0);
        Self {
            pool,
            page_reads,
            readers: Mutex::default(),
            pages: zero(),
            head_polls: zero(),
            newest: Mutex::default(),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn page_reads(&self) -> &PageReads {
        &self.page_reads
    }

    /// The reader of a log, made by `make` if there is none, or if the one that there is has ended.
    pub(crate) fn reader(&self, log: LogId, make: impl FnOnce() -> Reader) -> Arc<Reader> {
        let mut readers = self.lock();
        let existing = readers.get(&log).and_then(Weak::upgrade);
        let reader = match &existing {
            Some(reader) if reader.live().follow().is_some() => Arc::clone(reader),
            _ => {
                let reader = Arc::new(make());
                readers.insert(log, Arc::downgrade(&reader));
                reader
            }
        };
        // `existing` may be the last owner of a reader that has ended, and a reader's drop takes the lock.
        drop(readers);
        drop(existing);
        reader
    }

    /// Forgets the reader of a log after its drop, but not a new reader of the same log.
    pub(crate) fn forget(&self, log: LogId) {
        let mut readers = self.lock();
        if readers.get(&log).is_some_and(|reader| reader.strong_count() == 0) {
            readers.remove(&log);
        }
    }

    pub(crate) fn count_page(&self) {
        self.pages.fetch_add(1, Ordering::Relaxed);
    }

    /// Logs that are followed, pages that were read, and polls of the heads.
    pub(crate) fn counts(&self) -> (usize, u64, u64) {
        let logs = self.lock().len();
        (logs, self.pages.load(Ordering::Relaxed), self.head_polls.load(Ordering::Relaxed))
    }

    /// Streams that follow a log.
    pub(crate) fn followers(&self) -> usize {
        self.reading().iter().map(|(live, _)| live.followers()).sum()
    }

    /// Notes that this event, the newest of its log, was read for followers.
    #[expect(clippy::disallowed_methods, reason = "the event has the time of another clock")]
    pub(crate) fn note_newest(&self, event: &Event) {
        let age = OffsetDateTime::from(SystemTime::now()) - event.at;
        // Negative if the database's clock is ahead.
        let age = age.try_into().unwrap_or_default();
        *self.newest() = Some((Instant::now(), age));
    }

    /// How old the newest event was when it was last read, if that was lately.
    pub(crate) fn lag(&self) -> Option<Duration> {
        self.newest().filter(|(at, _)| at.elapsed() < LATELY).map(|(_, age)| age)
    }

    fn newest(&self) -> MutexGuard<'_, Option<(Instant, Duration)>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The readers that have started and not ended, and how far they have read.
    fn reading(&self) -> Vec<(Arc<Live>, Tail)> {
        let readers: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        // Outside of the lock: this list may be the last owner of a reader, and a reader's drop takes the lock.
        readers.iter().filter_map(|reader| Some((Arc::clone(reader.live()), reader.live().tail()?))).collect()
    }

    /// Ends all readers.
    fn end(&self) {
        for (live, _) in self.reading() {
            live.end();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogId, Weak<Reader>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the poller. When the poller ends, also by a panic or with its runtime, all readers end: the streams read pages by
/// themselves, and make new readers and a new poller.
pub(crate) struct PollerGuard(Arc<Registry>);

impl PollerGuard {
    pub(crate) fn new(registry: &Arc<Registry>) -> Self {
        Self(Arc::clone(registry))
    }
}

impl Drop for PollerGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Polls the heads of all followed logs, after each gap of the bus and at least every [`POLL_FLOOR`]. Wakes the readers of logs that
/// have grown.
pub(crate) async fn run_poller(guard: PollerGuard, bus: Bus) {
    let registry = &guard.0;
    // A subscription of no topic receives gaps only.
    let mut gaps = bus.subscribe_all([], 1);
    drop(bus);
    let mut is_bus_open = true;
    loop {
        is_bus_open = wait(&mut gaps, is_bus_open).await;
        let mut backoff = pauses(POLL_FLOOR);
        while let Err(error) = poll_heads(registry).await {
            if !error.may_be_repeated() {
                tracing::debug!(%error, "cannot poll the event logs that are followed");
                // Each stream then reads a page by itself, which shows the reason, such as a closed pool.
                registry.end();
                break;
            }
            tracing::warn!(%error, "cannot poll the event logs that are followed, will be repeated");
            sleep(backoff.pause()).await;
        }
        // One poll answers all gaps that come during this pause.
        sleep(POLL_PACE).await;
    }
}

/// Waits for a reason to poll. Returns whether the bus is open.
async fn wait(gaps: &mut Subscription, is_bus_open: bool) -> bool {
    // With jitter, so that many processes do not poll at the same moment.
    let floor = POLL_FLOOR.mul_f64(fastrand::f64().mul_add(0.2, 0.8));
    if !is_bus_open {
        sleep(floor).await;
        return false;
    }
    !matches!(timeout(floor, gaps.recv()).await, Ok(None))
}

async fn poll_heads(registry: &Registry) -> Result<(), Error> {
    let reading = registry.reading();
    if reading.is_empty() {
        return Ok(());
    }
    registry.head_polls.fetch_add(1, Ordering::Relaxed);
    let logs: Vec<i64> = reading.iter().map(|(live, _)| live.log.0).collect();
    let heads = limited(WHAT, Head::read(registry.pool.handle(), &logs)).await?;
    for (live, tail) in reading {
        match heads.get(&live.log) {
            // If the log ends before the tail, or with another batch, it was rewound, which the reader detects.
            Some(head) if (Tail { id: head.last, mark: head.mark }) != tail || head.is_finished => {
                live.wake();
            }
            Some(_) => {}
            None => live.end(),
        }
    }
    Ok(())
}
