//! Page reads: how many may run at once, and how equal ones share a page.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::limits::STATEMENT_LIMIT;
use crate::read::{Page, WHAT, Wanted};
use crate::{Error, LogId};

/// How event logs use their pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EventOptions {
    /// Connections of the pool that may read pages at once, for streams that catch up and for histories (default a quarter of
    /// the pool, at least 1). The other connections stay free for appends, however many streams catch up.
    pub max_page_reads: Option<u32>,
}

impl EventOptions {
    /// Sets [`max_page_reads`](Self::max_page_reads).
    #[must_use]
    pub fn max_page_reads(self, max: u32) -> Self {
        Self { max_page_reads: Some(max) }
    }
}

/// A page, by its log, its cursor and its size.
type Key = (LogId, i64, i64);

/// The permits for page reads, and the pages that are being read.
pub(crate) struct PageReads {
    permits: Semaphore,
    under_way: Mutex<HashMap<Key, Weak<OnceCell<Page>>>>,
}

impl PageReads {
    pub(crate) fn new(pool: &db_core::Pool, options: EventOptions) -> Self {
        let permits = options.max_page_reads.unwrap_or(pool.stats().max / 4).max(1);
        let permits = usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { permits: Semaphore::new(permits), under_way: Mutex::default() }
    }

    /// Waits for a permit, in order of arrival.
    pub(crate) async fn permit(&self) -> Result<SemaphorePermit<'_>, Error> {
        match timeout(STATEMENT_LIMIT, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Error::TimedOut { what: WHAT, seconds: STATEMENT_LIMIT.as_secs() }),
        }
    }

    /// A page, read by `read`, or by another stream that reads the same page now.
    ///
    /// A page with which the log ended is not shared. The stream follows the log from that page on, and misses nothing only if the query
    /// has begun after the stream subscribed.
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
        let shared = SharedPage::join(self, (log, wanted.after, wanted.bytes));
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

/// A page that several streams wait for. One of them reads it; if that one fails or is dropped, the next one does.
struct SharedPage<'a> {
    home: &'a PageReads,
    key: Key,
    /// None only during the drop.
    cell: Option<Arc<OnceCell<Page>>>,
}

impl<'a> SharedPage<'a> {
    fn join(home: &'a PageReads, key: Key) -> Self {
        let mut under_way = home.lock();
        let existing = under_way.get(&key).and_then(Weak::upgrade);
        let cell = existing.unwrap_or_else(|| {
            let cell = Arc::default();
            under_way.insert(key, Arc::downgrade(&cell));
            cell
        });
        Self { home, key, cell: Some(cell) }
    }

    fn cell(&self) -> &OnceCell<Page> {
        self.cell.as_ref().expect("the cell is there until the drop")
    }
}

impl Drop for SharedPage<'_> {
    fn drop(&mut self) {
        let mut under_way = self.home.lock();
        self.cell = None;
        if under_way.get(&self.key).is_some_and(|cell| cell.strong_count() == 0) {
            under_way.remove(&self.key);
        }
    }
}
