//! The readers of all logs that are followed in this process, and the one query that looks after all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use db_core::Pool;
use db_notify::{Bus, Subscription};
use tokio::time::{sleep, timeout};

use crate::catching_up::{CatchingUp, EventOptions};
use crate::log::limited;
use crate::page::WHAT;
use crate::reader::{Live, Reader, Tail};
use crate::stream::backoff;
use crate::{Error, Head, LogId, POLL_FLOOR};

/// The shortest time between two looks at all logs.
const POLL_PACE: Duration = Duration::from_millis(200);

/// Who reads what, and what that has cost.
pub(crate) struct Shared {
    pool: Pool,
    catching_up: CatchingUp,
    readers: Mutex<HashMap<LogId, Weak<Reader>>>,
    pages: AtomicU64,
    head_polls: AtomicU64,
}

impl Shared {
    pub(crate) fn new(pool: Pool, options: EventOptions) -> Self {
        let catching_up = CatchingUp::new(&pool, options);
        let (pages, head_polls) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { pool, catching_up, readers: Mutex::default(), pages, head_polls }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn catching_up(&self) -> &CatchingUp {
        &self.catching_up
    }

    /// The reader of a log, made by `make` if there is none that still reads.
    pub(crate) fn reader(&self, log: LogId, make: impl FnOnce() -> Reader) -> Arc<Reader> {
        let mut readers = self.lock();
        let there = readers.get(&log).and_then(Weak::upgrade);
        let reader = match &there {
            Some(reader) if reader.live().follow().is_some() => Arc::clone(reader),
            _ => {
                let reader = Arc::new(make());
                readers.insert(log, Arc::downgrade(&reader));
                reader
            }
        };
        // One that has ended may have its last owner here, and its drop takes the lock.
        drop(readers);
        drop(there);
        reader
    }

    /// Forgets the reader of a log that was dropped, and not one that has taken its place.
    pub(crate) fn forget(&self, log: LogId) {
        let mut readers = self.lock();
        if readers.get(&log).is_some_and(|reader| reader.strong_count() == 0) {
            readers.remove(&log);
        }
    }

    pub(crate) fn count_page(&self) {
        self.pages.fetch_add(1, Ordering::Relaxed);
    }

    /// Logs that are followed, pages and heads that were asked for.
    pub(crate) fn counts(&self) -> (usize, u64, u64) {
        let logs = self.lock().len();
        (logs, self.pages.load(Ordering::Relaxed), self.head_polls.load(Ordering::Relaxed))
    }

    /// Those that read now, and how far they are.
    fn reading(&self) -> Vec<(Arc<Live>, Tail)> {
        let readers: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        // Outside of the lock: the last owner of a reader may be this list, and a reader that is dropped takes the lock.
        readers.iter().filter_map(|reader| Some((Arc::clone(reader.live()), reader.live().tail()?))).collect()
    }

    /// Nothing is passed on any more.
    fn end(&self) {
        for (live, _) in self.reading() {
            live.end();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogId, Weak<Reader>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the one who looks after the logs. When that ends, also with its runtime, or by a panic, the readers end: those who follow
/// look by themselves, and begin anew.
pub(crate) struct PollerGuard(Arc<Shared>);

impl PollerGuard {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }
}

impl Drop for PollerGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Looks at all logs that are followed: after each gap, and now and then. Wakes the readers of those that have moved.
pub(crate) async fn run_poller(alive: PollerGuard, bus: Bus) {
    let shared = &alive.0;
    // It follows nothing, and so hears of gaps only.
    let mut gaps = bus.subscribe_all([], 1);
    drop(bus);
    let mut bus_open = true;
    loop {
        bus_open = wait(&mut gaps, bus_open).await;
        let mut pauses = backoff();
        while let Err(error) = poll_heads(shared).await {
            if !error.may_pass() {
                tracing::debug!(%error, "cannot look at the event logs that are followed");
                // Whoever follows one looks by itself, and meets the reason: such as a pool that was closed.
                shared.end();
                break;
            }
            tracing::warn!(%error, "cannot look at the event logs that are followed yet");
            sleep(pauses.next().unwrap_or(POLL_FLOOR)).await;
        }
        // Gaps that come meanwhile are one.
        sleep(POLL_PACE).await;
    }
}

/// Waits for a reason to look; tells whether the bus is open still.
async fn wait(gaps: &mut Subscription, bus_open: bool) -> bool {
    // Spread, so that many processes do not look at the same moment.
    let floor = POLL_FLOOR.mul_f64(fastrand::f64().mul_add(0.2, 0.8));
    if !bus_open {
        sleep(floor).await;
        return false;
    }
    !matches!(timeout(floor, gaps.recv()).await, Ok(None))
}

async fn poll_heads(shared: &Shared) -> Result<(), Error> {
    let reading = shared.reading();
    if reading.is_empty() {
        return Ok(());
    }
    shared.head_polls.fetch_add(1, Ordering::Relaxed);
    let logs: Vec<i64> = reading.iter().map(|(live, _)| live.log.0).collect();
    let heads = limited(WHAT, Head::read(shared.pool.handle(), &logs)).await?;
    for (live, tail) in reading {
        match heads.get(&live.log) {
            // A log that ends before that, or with another batch, was rewound: the reader finds out.
            Some(head) if (Tail { id: head.last, mark: head.mark }) != tail || head.is_finished => {
                live.wake();
            }
            Some(_) => {}
            None => live.end(),
        }
    }
    Ok(())
}
