//! How those who have to catch up share the pool with those who write, and their pages with each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::append::STATEMENT_LIMIT;
use crate::page::{Page, WHAT, Wanted};
use crate::{Error, LogId};

/// How event logs use their pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventOptions {
    /// How many connections of the pool may read pages at once for streams that catch up and for histories, at least one. `None`, the
    /// default, is a quarter of the pool. The rest stays free for appends, however many streams catch up.
    pub catching_up: Option<u32>,
}

/// Which page it is: of which log, after which event, of which size.
type Key = (LogId, i64, i64);

/// The permits of those who read pages, and the pages that are being read.
pub(crate) struct CatchingUp {
    permits: Semaphore,
    under_way: Mutex<HashMap<Key, Weak<OnceCell<Page>>>>,
}

impl CatchingUp {
    pub(crate) fn new(pool: &db_core::Pool, options: EventOptions) -> Self {
        let permits = options.catching_up.unwrap_or(pool.stats().max / 4).max(1);
        let permits = usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { permits: Semaphore::new(permits), under_way: Mutex::default() }
    }

    /// Waits for a place, in order of arrival. Each reader before has a limit, so this is not for ever.
    pub(crate) async fn permit(&self) -> Result<SemaphorePermit<'_>, Error> {
        match timeout(STATEMENT_LIMIT, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // Nobody closes it.
            Ok(Err(_)) | Err(_) => Err(Error::TimedOut { what: WHAT, seconds: STATEMENT_LIMIT.as_secs() }),
        }
    }

    /// A page of all that comes after an event, read by `read`, or by another stream that asks for the same page now.
    ///
    /// A page with which the log ended is not shared. Whoever gets it concludes what comes next, and for that the look has to begin
    /// after the stream took its place among those who follow.
    pub(crate) async fn page<F>(
        &self,
        log: LogId,
        wanted: Wanted<'_>,
        read: impl Fn() -> F,
    ) -> Result<Page, Error>
    where
        F: Future<Output = Result<Page, Error>>,
    {
        let with_permit = async || {
            let _permit = self.permit().await?;
            read().await
        };
        let shared = Shared::join(self, (log, wanted.after, wanted.bytes));
        let mut is_own = false;
        let page = shared
            .cell()
            .get_or_try_init(async || {
                is_own = true;
                with_permit().await
            })
            .await?
            .clone();
        drop(shared);
        if is_own || page.is_full { Ok(page) } else { with_permit().await }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<OnceCell<Page>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page that several may wait for: one of them reads it, and if that one fails or is dropped, the next.
struct Shared<'a> {
    home: &'a CatchingUp,
    key: Key,
    /// None only while it is dropped.
    cell: Option<Arc<OnceCell<Page>>>,
}

impl<'a> Shared<'a> {
    fn join(home: &'a CatchingUp, key: Key) -> Self {
        let mut under_way = home.lock();
        let there = under_way.get(&key).and_then(Weak::upgrade);
        let cell = there.unwrap_or_else(|| {
            let cell = Arc::default();
            under_way.insert(key, Arc::downgrade(&cell));
            cell
        });
        Self { home, key, cell: Some(cell) }
    }

    fn cell(&self) -> &OnceCell<Page> {
        self.cell.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let mut under_way = self.home.lock();
        self.cell = None;
        if under_way.get(&self.key).is_some_and(|cell| cell.strong_count() == 0) {
            under_way.remove(&self.key);
        }
    }
}
