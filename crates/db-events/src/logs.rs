//! The handle to all logs of a database.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use db_core::{Handle, Pool, Session};
use db_notify::{Bus, WatchedState, WatchedTopics};
use sqlx::Executor;
use tokio::runtime;
use tokio::task::JoinSet;

use crate::deadline::limited;
use crate::follow::{PollerGuard, Reader, Registry, run_poller};
use crate::read::{self, Head, Seen, WHAT};
use crate::{Error, EventOptions, LogId, LogTopics};

/// The event logs of a database. Cheap to clone.
#[derive(Clone)]
pub struct EventLogs {
    inner: Arc<LogsInner>,
}

struct LogsInner {
    registry: Arc<Registry>,
    bus: Bus,
    watched: WatchedTopics,
    topics: LogTopics,
    /// The task that polls the heads of followed logs: none before the first log is followed, a new one after the old one has
    /// ended. The task holds the registry and not `LogsInner`, so that it ends with the last handle and the last stream.
    poller: Mutex<JoinSet<()>>,
}

/// How logs are followed in this process, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventsState {
    /// Logs that are followed in this process.
    pub followed: usize,
    /// Streams that follow a log in this process. One that reads pages by itself, because it has not caught up, does not count.
    pub followers: usize,
    /// How old the newest event was when it was last read for followers: from the beginning of the transaction that has appended it, by
    /// the database's clock, to the read, by this machine's. `None` if none was read in the last minute.
    pub lag: Option<Duration>,
    /// Whether only polls find new events, because the bus does not receive notifications at the moment.
    pub is_polling: bool,
    /// Pages that readers and streams have read.
    pub pages: u64,
    /// Polls of the heads of all followed logs. Each was one query.
    pub head_polls: u64,
    /// Which logs are followed in which processes, and how many notifications that has saved.
    pub watched: WatchedState,
}

impl EventLogs {
    /// The event logs in the pool's database. A migration must have made their tables ([`SCHEMA`](crate::SCHEMA)). `bus` wakes
    /// the followers of a log; an append to a log that no process follows sends no NOTIFY.
    ///
    /// Clones of the handle share one reader for each followed log; a second handle made here has readers of its own, with a query
    /// of their own for each append. Streams go on after the last handle is dropped. The tasks run on the runtime of the bus, or,
    /// once that has ended, on the runtime of the next caller that follows a log.
    #[must_use]
    pub fn new(pool: Pool, bus: &Bus) -> Self {
        Self::with_options(pool, bus, &LogTopics::default(), EventOptions::default())
    }

    /// As [`new`](Self::new), with topics of other names.
    #[must_use]
    pub fn with_topics(pool: Pool, bus: &Bus, topics: &LogTopics) -> Self {
        Self::with_options(pool, bus, topics, EventOptions::default())
    }

    /// As [`new`](Self::new), with topics of other names and with options.
    #[must_use]
    pub fn with_options(pool: Pool, bus: &Bus, topics: &LogTopics, options: EventOptions) -> Self {
        let inner = LogsInner {
            registry: Arc::new(Registry::new(pool, options)),
            bus: bus.clone(),
            watched: WatchedTopics::new(bus, &topics.watched, &topics.options),
            topics: topics.clone(),
            poller: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How logs are followed in this process now.
    #[must_use]
    pub fn state(&self) -> EventsState {
        let LogsInner { registry, bus, watched, .. } = &*self.inner;
        let (followed, pages, head_polls) = registry.counts();
        EventsState {
            followed,
            followers: registry.followers(),
            lag: registry.lag(),
            is_polling: !bus.state().is_connected(),
            pages,
            head_polls,
            watched: watched.state(),
        }
    }

    /// Makes an empty log.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] and [`Error::TimedOut`].
    pub async fn create(&self) -> Result<LogId, Error> {
        create(self.handle()).await
    }

    /// Makes an empty log in a transaction, together with the row that it belongs to.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn create_in(&self, db: &mut Session) -> Result<LogId, Error> {
        create(db).await
    }

    /// Where a log ends now. No event is read.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Removed`], [`Error::Database`] and [`Error::TimedOut`].
    pub async fn head(&self, log: LogId) -> Result<Head, Error> {
        match limited(WHAT, Head::read(self.handle(), &[log.0])).await?.remove(&log) {
            Some(head) => Ok(head),
            None if limited(WHAT, read::was_created(self.handle(), log)).await? => {
                Err(Error::Removed { log, first: None })
            }
            None => Err(Error::UnknownLog(log)),
        }
    }

    /// The first event after event `after` that is still there; none if there is none, or if the log is gone.
    pub(crate) async fn first_after(&self, log: LogId, after: i64) -> Result<Option<i64>, Error> {
        let first = sqlx::query_scalar(
            "select batch.first
             from event_logs
             cross join lateral (
                 select first
                 from event_log_batches
                 where log = event_logs.id and first > $2
                 order by first
                 limit 1
             ) as batch
             where event_logs.id = $1",
        )
        .bind(log.0)
        .bind(after)
        .fetch_optional(self.handle());
        limited(WHAT, first).await
    }

    /// The error for a reader whose next event was removed.
    pub(crate) async fn removed(&self, log: LogId, cursor: i64) -> Result<Error, Error> {
        Ok(Error::Removed { log, first: self.first_after(log, cursor).await? })
    }

    /// The error for a reader that has seen events which do not exist any more.
    pub(crate) async fn rewound(&self, log: LogId, seen: &Seen) -> Result<Error, Error> {
        let last = if seen.is_empty() {
            // An id without a mark is trusted, as far as the log goes.
            self.head(log).await?.last
        } else {
            limited(WHAT, seen.last_unchanged(self.handle(), log)).await?
        };
        Ok(Error::Rewound { log, last })
    }

    /// Tells the followers of a log, in all processes, that it may have grown.
    pub(crate) fn wake(&self, log: LogId) {
        if let Err(error) = self.inner.watched.notify(&self.inner.topics.of(log)) {
            // The bus is closing; followers find the events at their next poll.
            tracing::debug!(%log, %error, "the followers of an event log were not notified");
        }
    }

    /// Tells the followers of a log after a transaction, unless that is known to be rolled back.
    pub(crate) fn wake_after(&self, db: &mut Session, log: LogId) {
        self.inner.watched.notify_after(db, &self.inner.topics.of(log));
    }

    /// The reader of a log for all of its followers in this process.
    pub(crate) fn reader(&self, log: LogId) -> Arc<Reader> {
        let LogsInner { registry, bus, watched, topics, poller } = &*self.inner;
        // The caller's runtime may end, or not be driven, long before the other followers' runtimes.
        let runtime = bus.runtime().unwrap_or_else(runtime::Handle::current);
        let mut task = poller.lock().unwrap_or_else(PoisonError::into_inner);
        while task.try_join_next().is_some() {}
        if task.is_empty() {
            task.spawn_on(run_poller(PollerGuard::new(registry), bus.clone()), &runtime);
        }
        drop(task);
        let weak = Arc::downgrade(registry);
        registry.reader(log, || Reader::new(log, watched.watch(&topics.of(log), 1), weak, runtime))
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }

    #[track_caller]
    pub(crate) fn handle(&self) -> Handle {
        self.inner.registry.pool().handle()
    }
}

impl fmt::Debug for EventLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLogs").field("state", &self.state()).finish_non_exhaustive()
    }
}

async fn create<'c>(executor: impl Executor<'c, Database = sqlx::Postgres>) -> Result<LogId, Error> {
    let create = sqlx::query_scalar("insert into event_logs default values returning id").fetch_one(executor);
    limited("create an event log", create).await.map(LogId)
}
