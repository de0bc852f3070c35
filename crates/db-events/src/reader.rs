//! The one who reads a log for all in this process who follow it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use db_notify::{Delivery, GapReason, Watch};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::fanout::{Fanout, Follower};
use crate::page::{Continuity, Events, Page, Wanted};
use crate::registry::Shared;
use crate::stream::backoff;
use crate::{LogId, Mark, POLL_FLOOR};

/// Some log's reader. It reads from when the first stream has caught up until the last one is dropped.
pub(crate) struct Reader {
    live: Arc<Live>,
    /// Made before anybody's first look, so that no append falls between a look and the wait after it.
    watch: Mutex<Option<Watch>>,
    /// Dropped with the reader, which ends the task.
    task: OnceLock<JoinSet<()>>,
    /// Where it is found; forgotten when it is dropped.
    home: Weak<Shared>,
    /// Where the task runs.
    runtime: Handle,
}

/// What the reader's task shares with those who follow.
pub(crate) struct Live {
    pub(crate) log: LogId,
    /// The event after which it has begun to read; none before.
    start: OnceLock<i64>,
    /// The last event that was passed on, and its mark.
    tail: Mutex<Tail>,
    /// There is more than what was passed on, or the log is gone.
    woken: Notify,
    /// None once the reader has ended: then everybody looks, and sees why.
    fanout: Mutex<Option<Fanout>>,
}

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tail {
    pub(crate) id: i64,
    /// None before the first event.
    pub(crate) mark: Option<Mark>,
}

impl Reader {
    pub(crate) fn new(log: LogId, watch: Watch, home: Weak<Shared>, runtime: Handle) -> Self {
        let live = Live {
            log,
            start: OnceLock::new(),
            tail: Mutex::default(),
            woken: Notify::new(),
            fanout: Mutex::new(Some(Fanout::new())),
        };
        Self { live: Arc::new(live), watch: Mutex::new(Some(watch)), task: OnceLock::new(), home, runtime }
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Has it read from `cursor` on, unless it has begun already. Tells where it has begun: who has seen less has to look once
    /// more, and then misses nothing.
    pub(crate) fn start_at(&self, cursor: i64, mark: Option<Mark>, shared: &Arc<Shared>) -> i64 {
        let start = *self.live.start.get_or_init(|| {
            self.live.set_tail(Tail { id: cursor, mark });
            cursor
        });
        self.task.get_or_init(|| {
            let mut task = JoinSet::new();
            if let Some(watch) = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take() {
                let reading = ReaderTask {
                    live: Arc::clone(&self.live),
                    shared: Arc::clone(shared),
                    watch,
                    bus_open: true,
                };
                task.spawn_on(reading.run(), &self.runtime);
            }
            task
        });
        start
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.forget(self.live.log);
        }
    }
}

impl Live {
    /// What is passed on from now on; none if nothing ever will be.
    pub(crate) fn follow(&self) -> Option<Follower> {
        self.fanout().as_ref().map(Fanout::follow)
    }

    /// The last event that was passed on; none before the reader has begun, and when it has ended.
    pub(crate) fn tail(&self) -> Option<Tail> {
        let has_begun = self.start.get().is_some() && self.fanout().is_some();
        has_begun.then(|| self.position())
    }

    fn position(&self) -> Tail {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_tail(&self, tail: Tail) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
    }

    /// There is something to read.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Nothing more is passed on. Whoever follows looks by itself, and meets the reason.
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

/// What the task owns.
struct ReaderTask {
    live: Arc<Live>,
    shared: Arc<Shared>,
    watch: Watch,
    bus_open: bool,
}

impl Drop for ReaderTask {
    /// However the task ends, also by a panic, or with its runtime before its first poll.
    fn drop(&mut self) {
        self.live.end();
    }
}

impl ReaderTask {
    /// Reads what is new each time that there may be something, until the log is finished, cannot be read, or does not continue
    /// what was passed on.
    async fn run(mut self) {
        loop {
            self.woken().await;
            match self.read().await {
                Ok(false) => {}
                Ok(true) | Err(()) => break,
            }
        }
    }

    /// Waits for a reason to look.
    async fn woken(&mut self) {
        loop {
            let delivery = tokio::select! {
                () = self.live.woken.notified() => return,
                delivery = self.watch.recv(), if self.bus_open => delivery,
            };
            match delivery {
                None => self.bus_open = false,
                // What only this topic is told of.
                Some(Delivery::Notification(_)) => return,
                Some(Delivery::Gap(gap))
                    if matches!(gap.reason, GapReason::Lagged | GapReason::Unannounced) =>
                {
                    return;
                }
                // Of the rest everybody is told, and one query looks at all logs.
                Some(Delivery::Gap(_)) => {}
            }
        }
    }

    /// Passes on all that there is. Tells whether the log has ended.
    async fn read(&mut self) -> Result<bool, ()> {
        let log = &self.live.log;
        let mut pauses = backoff();
        loop {
            // What came before the look is seen by it.
            while let Some(Some(_)) = self.watch.recv().now_or_never() {}
            let tail = self.live.position();
            let page = match page(&self.shared, *log, Wanted::after(tail.id)).await {
                Ok(page) => page,
                Err(error) if error.may_pass() => {
                    tracing::warn!(%log, %error, "cannot read events yet");
                    sleep(pauses.next().unwrap_or(POLL_FLOOR)).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%log, %error, "cannot follow an event log any more");
                    return Err(());
                }
            };
            pauses = backoff();
            match page.continuity(tail.id, tail.mark) {
                Continuity::Continues | Continuity::AtEnd => {}
                // An empty log, or one that is gone, which those who look after all logs find out.
                Continuity::NoTrace if tail.id == 0 => {}
                continuity @ (Continuity::Removed | Continuity::Rewound | Continuity::NoTrace) => {
                    tracing::warn!(%log, ?continuity, tail = tail.id, "an event log does not go on where it ended");
                    return Err(());
                }
            }
            if let Some(events) = page.events {
                self.live.publish(events, page.is_finished);
            }
            if page.is_finished || !page.is_full {
                return Ok(page.is_finished);
            }
        }
    }
}

/// A look, counted.
pub(crate) async fn page(shared: &Shared, log: LogId, wanted: Wanted<'_>) -> Result<Page, crate::Error> {
    shared.count_page();
    Page::read(shared.pool(), log, wanted).await
}
