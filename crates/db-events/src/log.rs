//! The handle to all logs of a database.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use db_core::{Handle, Pool, Session};
use db_notify::{Bus, NameError, Topic, WatchOptions, WatchedState, WatchedTopics};
use sqlx::Executor;
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::append::{Attempt, Batch, Outcome, STATEMENT_LIMIT, append};
use crate::page::WHAT;
use crate::reader::Reader;
use crate::registry::{PollerGuard, Shared, run_poller};
use crate::seen::Seen;
use crate::{
    Appender, Error, EventOptions, EventStream, Head, History, LogId, Mark, NewEvent, Selection, Writer,
    WriterId,
};

/// The event logs of a database. Cheap to clone.
#[derive(Clone)]
pub struct EventLogs {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    bus: Bus,
    watched: WatchedTopics,
    topics: LogTopics,
    /// Looks after the logs that are followed; none before the first one is, and another one when it has ended. It holds `shared` and not `Inner`, so that it ends with
    /// the last handle and the last stream.
    poller: Mutex<JoinSet<()>>,
}

/// How the logs are followed in this process, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventsState {
    /// Logs that are followed here.
    pub followed: usize,
    /// Whether only looks find what is new, because the bus does not hear anything now.
    pub is_polling: bool,
    /// Pages that were asked for, by readers and by streams that had to catch up.
    pub pages: u64,
    /// How often it was looked after all logs that are followed, by one query each.
    pub head_polls: u64,
    /// Who follows what, in all processes, and the notifications that it has saved.
    pub watched: WatchedState,
}

/// The topics by which those who follow logs are woken: `log/` with the log's number by default, and `log/watched`. All processes
/// on a database must agree on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTopics {
    prefix: String,
    watched: Topic,
    options: WatchOptions,
}

impl LogTopics {
    /// Topics that begin with `prefix`, which a log's number follows; `watched` is the one under which processes tell each other
    /// what they follow.
    ///
    /// # Errors
    ///
    /// When some log's topic would be too long, or contain a NUL.
    pub fn new(prefix: impl Into<String>, watched: Topic) -> Result<Self, NameError> {
        let topics = Self { prefix: prefix.into(), watched, options: WatchOptions::default() };
        // No number is longer.
        topics.checked(LogId(i64::MIN))?;
        Ok(topics)
    }

    /// How processes keep what they know of each other up to date.
    #[must_use]
    pub fn options(self, options: WatchOptions) -> Self {
        Self { options, ..self }
    }

    fn checked(&self, log: LogId) -> Result<Topic, NameError> {
        Topic::new(format!("{}{log}", self.prefix))
    }

    /// The topic that a log's appends are notified under.
    fn of(&self, log: LogId) -> Topic {
        self.checked(log).expect("the longest was checked")
    }
}

impl Default for LogTopics {
    fn default() -> Self {
        let watched = Topic::new("log/watched").expect("a short text without NUL");
        Self { prefix: "log/".to_owned(), watched, options: WatchOptions::default() }
    }
}

impl EventLogs {
    /// Event logs in the pool's database, whose tables a migration has made ([`SCHEMA`](crate::SCHEMA)); `bus` wakes
    /// those who follow. A log that nobody follows, in any process, costs no NOTIFY.
    ///
    /// Clones of the handle follow a log together; another handle made here follows it by itself, with a query of its own for each
    /// append. Streams keep what they need of it, so they go on when the last handle is dropped. The tasks run where the bus's run,
    /// or, when nothing can be heard there any more, where somebody next begins to follow.
    #[must_use]
    pub fn new(pool: Pool, bus: &Bus) -> Self {
        Self::with_options(pool, bus, &LogTopics::default(), EventOptions::default())
    }

    /// The same with topics of other names.
    #[must_use]
    pub fn with_topics(pool: Pool, bus: &Bus, topics: &LogTopics) -> Self {
        Self::with_options(pool, bus, topics, EventOptions::default())
    }

    /// The same with topics of other names and another share of the pool for those who catch up.
    #[must_use]
    pub fn with_options(pool: Pool, bus: &Bus, topics: &LogTopics, options: EventOptions) -> Self {
        let watched = WatchedTopics::new(bus, &topics.watched, &topics.options);
        let inner = Inner {
            shared: Arc::new(Shared::new(pool, options)),
            bus: bus.clone(),
            watched,
            topics: topics.clone(),
            poller: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How the logs are followed in this process, now.
    #[must_use]
    pub fn state(&self) -> EventsState {
        let Inner { shared, bus, watched, .. } = &*self.inner;
        let (followed, pages, head_polls) = shared.counts();
        EventsState {
            followed,
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
    /// [`Error::Database`].
    pub async fn create(&self) -> Result<LogId, Error> {
        create(self.handle()).await
    }

    /// Makes an empty log in a transaction, together with whatever it belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn create_in(&self, db: &mut Session) -> Result<LogId, Error> {
        create(db).await
    }

    /// Appends events, all of them or none, after the log's last one. Returns their ids.
    ///
    /// One statement and one round trip; again when another writer was quicker. Dropping the future leaves all stored or
    /// none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Finished`], and what is wrong with the events: nothing is stored then. With
    /// [`Error::TimedOut`], with a lost connection and with a limit of the pool's, they may be stored or not; [`Writer`] finds out
    /// after the first two, [`append_once`](Self::append_once) after all.
    pub async fn append(&self, log: LogId, events: &[NewEvent]) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, false)?).await
    }

    /// Appends a batch that may have been sent before, such as one whose answer was lost: the same events of the same writer under
    /// the same number are stored once, and their ids are returned however often they are sent. Otherwise as [`EventLogs::append`].
    ///
    /// # Errors
    ///
    /// As [`EventLogs::append`]. After one that leaves open whether the batch is stored, send it again. [`Error::SequenceReused`] when
    /// other events are stored under the writer's number.
    pub async fn append_once(
        &self,
        log: LogId,
        (writer, sequence): (WriterId, i64),
        events: &[NewEvent],
    ) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, false)?.from(writer, sequence)).await
    }

    /// Appends the last events of a log, at least one. Nothing can be appended afterwards, and streams end.
    ///
    /// # Errors
    ///
    /// As [`EventLogs::append`].
    pub async fn finish(&self, log: LogId, events: &[NewEvent]) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, true)?).await
    }

    /// A writer that knows where the log ends because it is the only one. `last` is the log's last event, 0 for a new
    /// log.
    #[must_use]
    pub fn writer(&self, log: LogId, last: i64) -> Writer {
        Writer::new(self.clone(), log, last)
    }

    /// An appender, which makes batches of events that come one by one. Its task ends with its last handle.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn appender(&self, log: LogId) -> Appender {
        Appender::new(self.clone(), log)
    }

    /// The events after event `after` (0 for all), and those to come, until the log is finished. A stream from beyond the log's end
    /// ends with [`Error::Rewound`], and one from before the first event that was not removed with [`Error::Removed`].
    ///
    /// A number alone is taken to be that of the event that has it now; with its mark, [`resume`](Self::resume) makes sure.
    #[must_use]
    pub fn stream(&self, log: LogId, after: i64) -> EventStream {
        EventStream::new(self.clone(), log, after, None)
    }

    /// The same for one who has the mark of event `after`, too ([`Event::mark`](crate::Event), [`EventStream::mark`]), and so is told
    /// when that event is not the one that was seen: [`Error::Rewound`].
    #[must_use]
    pub fn resume(&self, log: LogId, after: i64, mark: Mark) -> EventStream {
        EventStream::new(self.clone(), log, after, Some(mark))
    }

    /// The last events of a log, at most so many, and those to come.
    ///
    /// # Errors
    ///
    /// As [`EventLogs::head`].
    pub async fn stream_last(&self, log: LogId, count: u32) -> Result<EventStream, Error> {
        let last = self.head(log).await?.last;
        Ok(self.stream(log, last.saturating_sub(count.into())))
    }

    /// Some events of those that are there now.
    #[must_use]
    pub fn history(&self, log: LogId, selection: Selection) -> History {
        History::new(self.clone(), log, selection)
    }

    /// Where a log ends now, which also tells how many events it has: nothing of them is read.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Removed`] or [`Error::Database`].
    pub async fn head(&self, log: LogId) -> Result<Head, Error> {
        match limited(WHAT, Head::read(self.handle(), &[log.0])).await?.remove(&log) {
            Some(head) => Ok(head),
            None if limited(WHAT, Head::was_there(self.handle(), log)).await? => Err(Error::Removed(log)),
            None => Err(Error::UnknownLog(log)),
        }
    }

    /// What to tell a reader who has seen events of a log that are not there any more.
    pub(crate) async fn rewound(&self, log: LogId, seen: &Seen) -> Result<Error, Error> {
        let last = if seen.is_empty() {
            // A number without a mark is taken at its word, as far as the log goes.
            self.head(log).await?.last
        } else {
            limited(WHAT, seen.still_there(self.handle(), log)).await?
        };
        Ok(Error::Rewound { log, last })
    }

    pub(crate) async fn append_batch(
        &self,
        log: LogId,
        after: Option<i64>,
        batch: &Batch<'_>,
    ) -> Result<RangeInclusive<i64>, Error> {
        let mut attempt = Attempt::AtOnce;
        loop {
            // Taken here, so that the wait for a connection has the pool's limit and the statement its own.
            let mut conn = self.handle().acquire().await.map_err(|error| Error::of(error.into()))?;
            // Also when this future is dropped, and the batch is stored all the same.
            let events = self.clone();
            conn.if_cut_off(move || events.wake(log));
            match append(&mut conn, log, after, batch, attempt).await {
                Ok(Outcome::Stored(ids)) => {
                    self.wake(log);
                    return Ok(ids);
                }
                Ok(Outcome::SequenceReused(ids)) => {
                    let is_same = batch.is_stored(&mut conn, log, ids.start() - 1).await?;
                    if let (false, Some((writer, sequence))) = (is_same, batch.source()) {
                        return Err(Error::SequenceReused { log, writer, sequence, first: *ids.start() });
                    }
                    self.wake(log);
                    return Ok(ids);
                }
                Err(error) => {
                    // It may be stored, and then somebody waits for it.
                    if error.is_ambiguous() {
                        self.wake(log);
                    }
                    return Err(error);
                }
                // The writer that was quicker has committed, so this ends: each turn some writer gets on.
                Ok(Outcome::Raced) => attempt = Attempt::InTurn,
            }
        }
    }

    /// Tells those who follow a log to look.
    pub(crate) fn wake(&self, log: LogId) {
        if let Err(error) = self.inner.watched.notify(&self.inner.topics.of(log)) {
            // The bus is closing; followers find the events at their next look.
            tracing::debug!(%log, %error, "not notified");
        }
    }

    /// The same after a transaction, unless that is rolled back.
    pub(crate) fn wake_after(&self, db: &mut Session, log: LogId) {
        self.inner.watched.notify_after(db, &self.inner.topics.of(log));
    }

    /// The one who reads a log for all who follow it here.
    pub(crate) fn reader(&self, log: LogId) -> Arc<Reader> {
        let Inner { shared, bus, watched, topics, poller } = &*self.inner;
        // With the bus rather than with whoever comes first, whose runtime may end, or be left alone, long before the others' do.
        let runtime = bus.runtime().unwrap_or_else(runtime::Handle::current);
        let mut task = poller.lock().unwrap_or_else(PoisonError::into_inner);
        while task.try_join_next().is_some() {}
        if task.is_empty() {
            task.spawn_on(run_poller(PollerGuard::new(shared), bus.clone()), &runtime);
        }
        drop(task);
        let home = Arc::downgrade(shared);
        shared.reader(log, || Reader::new(log, watched.watch(&topics.of(log), 1), home, runtime))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    #[track_caller]
    pub(crate) fn handle(&self) -> Handle {
        self.inner.shared.pool().handle()
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

pub(crate) async fn limited<T>(
    what: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(STATEMENT_LIMIT, statement).await {
        Ok(result) => result.map_err(Error::database(what)),
        Err(_) => Err(Error::TimedOut { what, seconds: STATEMENT_LIMIT.as_secs() }),
    }
}
