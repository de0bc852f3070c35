//! The reader of a log, which reads for all followers of the log in this process.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use db_notify::{Delivery, GapReason, Watch};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::fanout::{Fanout, Follower};
use super::registry::Registry;
use crate::limits::{POLL_FLOOR, pauses};
use crate::read::{Continuity, Events, Page, Wanted};
use crate::{LogId, Mark};

/// The reader of a log. Its task reads from when the first stream has caught up until the last stream is dropped.
pub(crate) struct Reader {
    live: Arc<Live>,
    /// Made before the first page is read, so that no append falls between that page and the first wait.
    watch: Mutex<Option<Watch>>,
    /// Dropped with the reader, which ends the task.
    task: OnceLock<JoinSet<()>>,
    /// The registry that has this reader, and forgets it when it is dropped.
    registry: Weak<Registry>,
    /// The runtime of the task.
    runtime: Handle,
}

/// The state that the reader's task shares with the followers.
pub(crate) struct Live {
    pub(crate) log: LogId,
    /// The event after which the reader has started; none before.
    start: OnceLock<i64>,
    /// The last event that was published.
    tail: Mutex<Tail>,
    /// Notified when there are events that were not published, or the log is gone.
    woken: Notify,
    /// None once the reader has ended: each stream then reads a page, which shows the reason.
    fanout: Mutex<Option<Fanout>>,
}

/// How far a reader has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tail {
    pub(crate) id: i64,
    /// None before the first event.
    pub(crate) mark: Option<Mark>,
}

impl Reader {
    pub(crate) fn new(log: LogId, watch: Watch, registry: Weak<Registry>, runtime: Handle) -> Self {
        let live = Live {
            log,
            start: OnceLock::new(),
            tail: Mutex::default(),
            woken: Notify::new(),
            fanout: Mutex::new(Some(Fanout::new())),
        };
        Self {
            live: Arc::new(live),
            watch: Mutex::new(Some(watch)),
            task: OnceLock::new(),
            registry,
            runtime,
        }
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Starts the reader at `cursor`, unless it has started. Returns where it started: a stream behind that position must read one
    /// more page before it follows.
    pub(crate) fn start_at(&self, cursor: i64, mark: Option<Mark>, registry: &Arc<Registry>) -> i64 {
        let start = *self.live.start.get_or_init(|| {
            self.live.set_tail(Tail { id: cursor, mark });
            cursor
        });
        self.task.get_or_init(|| {
            let mut task = JoinSet::new();
            if let Some(watch) = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take() {
                let reader = ReaderTask {
                    live: Arc::clone(&self.live),
                    registry: Arc::clone(registry),
                    watch,
                    is_bus_open: true,
                };
                task.spawn_on(reader.run(), &self.runtime);
            }
            task
        });
        start
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.forget(self.live.log);
        }
    }
}

impl Live {
    /// Subscribes to the pages that are published from now on; none if the reader has ended.
    pub(crate) fn follow(&self) -> Option<Follower> {
        self.fanout().as_ref().map(Fanout::follow)
    }

    /// The last event that was published; none before the reader has started, and after it has ended.
    pub(crate) fn tail(&self) -> Option<Tail> {
        let is_reading = self.start.get().is_some() && self.fanout().is_some();
        is_reading.then(|| self.position())
    }

    /// The streams that follow.
    pub(crate) fn followers(&self) -> usize {
        self.fanout().as_ref().map_or(0, Fanout::followers)
    }

    fn position(&self) -> Tail {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_tail(&self, tail: Tail) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
    }

    /// Makes the reader read a page.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Ends publishing. Each stream then reads a page by itself, which shows the reason.
    pub(crate) fn end(&self) {
        self.fanout().take();
    }

    fn publish(&self, events: Events, is_finished: bool) {
        self.set_tail(Tail { id: events.last_id(), mark: events.last().map(|event| event.mark) });
        if let Some(fanout) = &mut *self.fanout() {
            fanout.publish(events, is_finished);
        }
    }

    fn fanout(&self) -> MutexGuard<'_, Option<Fanout>> {
        self.fanout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reader's task.
struct ReaderTask {
    live: Arc<Live>,
    registry: Arc<Registry>,
    watch: Watch,
    is_bus_open: bool,
}

impl Drop for ReaderTask {
    /// The task has ended, perhaps by a panic, or with its runtime before its first poll.
    fn drop(&mut self) {
        self.live.end();
    }
}

impl ReaderTask {
    /// Publishes new events whenever there may be some, until the log is finished, cannot be read, or does not continue the
    /// events that were published.
    async fn run(mut self) {
        loop {
            self.wait().await;
            match self.publish_all().await {
                Ok(false) => {}
                Ok(true) | Err(()) => break,
            }
        }
    }

    /// Waits for a reason to read a page.
    async fn wait(&mut self) {
        loop {
            let delivery = tokio::select! {
                () = self.live.woken.notified() => return,
                delivery = self.watch.recv(), if self.is_bus_open => delivery,
            };
            match delivery {
                None => self.is_bus_open = false,
                // These concern this log only.
                Some(Delivery::Notification(_)) => return,
                Some(Delivery::Gap(gap))
                    if matches!(gap.reason, GapReason::Lagged | GapReason::Unannounced) =>
                {
                    return;
                }
                // Other gaps concern all logs: one query polls the heads of all of them.
                Some(Delivery::Gap(_)) => {}
            }
        }
    }

    /// Publishes all events that there are. Returns whether the log is finished.
    async fn publish_all(&mut self) -> Result<bool, ()> {
        let log = &self.live.log;
        let mut backoff = pauses(POLL_FLOOR);
        loop {
            // The page has the events of all notifications that came before it.
            while let Some(Some(_)) = self.watch.recv().now_or_never() {}
            let tail = self.live.position();
            let page = match page(&self.registry, *log, Wanted::after(tail.id)).await {
                Ok(page) => page,
                Err(error) if error.may_be_repeated() => {
                    tracing::warn!(%log, %error, "cannot read an event log for its followers, will be repeated");
                    sleep(backoff.pause()).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%log, %error, "cannot read an event log for its followers");
                    return Err(());
                }
            };
            backoff = pauses(POLL_FLOOR);
            match page.continuity(tail.id, tail.mark) {
                Continuity::Continues | Continuity::AtEnd => {}
                // The log is empty or gone; the poll of the heads shows which.
                Continuity::NoTrace if tail.id == 0 => {}
                continuity @ (Continuity::Removed | Continuity::Rewound | Continuity::NoTrace) => {
                    tracing::warn!(%log, ?continuity, tail = tail.id, "an event log does not continue the events that were published");
                    return Err(());
                }
            }
            if let Some(events) = page.events {
                if let Some(newest) = events.last().filter(|_| !page.is_full) {
                    self.registry.note_newest(newest);
                }
                self.live.publish(events, page.is_finished);
            }
            if page.is_finished || !page.is_full {
                return Ok(page.is_finished);
            }
        }
    }
}

/// Reads a page, and counts it.
pub(crate) async fn page(registry: &Registry, log: LogId, wanted: Wanted<'_>) -> Result<Page, crate::Error> {
    registry.count_page();
    Page::read(registry.pool(), log, wanted).await
}
