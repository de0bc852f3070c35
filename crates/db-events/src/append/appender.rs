//! Appending events one by one, stored in batches.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::statement::Batch;
use crate::limits::{MAX_BYTES, MAX_EVENTS};
use crate::{Error, EventLogs, LogId, NewEvent, WriterId};

/// How many bytes may wait to be stored. An event counts with its text and [`OVERHEAD`].
const ROOM: u32 = 8 << 20;

/// What an event costs beside its text, in bytes.
const OVERHEAD: usize = 64;

/// At this many bytes of text a batch is complete.
const BATCH_BYTES: usize = 1 << 20;

/// Appends events one by one, and stores them in batches: at once if no statement is under way, else together with all events that
/// have come meanwhile. One statement is under way at a time, so the events keep their order; the busier the log, the larger the
/// batches. Cheap to clone: clones are the same appender, and tasks may share it.
///
/// At most 8 MiB wait to be stored; then `append` and `push` wait. A database that is away, read-only or full is waited for, and
/// a batch whose answer was lost is stored once ([`EventLogs::append_once`]).
///
/// **Nothing is acknowledged before it is stored**: [`append`](Self::append), [`flush`](Self::flush) and [`finish`](Self::finish)
/// return after that. If the last handle is dropped without a flush, events that were only [pushed](Self::push) are lost, and a
/// log line says how many.
#[derive(Clone)]
pub struct Appender {
    inner: Arc<AppenderInner>,
}

struct AppenderInner {
    state: Arc<AppenderState>,
    orders: UnboundedSender<Order>,
    room: Arc<Semaphore>,
    /// Dropped with the last handle, which ends the task.
    _task: JoinSet<()>,
}

struct AppenderState {
    log: LogId,
    /// The last event that this appender has stored.
    last: AtomicI64,
    /// Events that wait to be stored.
    waiting: AtomicUsize,
    /// Why the appender is closed.
    failure: OnceLock<Arc<Error>>,
}

enum Order {
    Append {
        event: NewEvent,
        finishes: bool,
        stored: Option<oneshot::Sender<i64>>,
        room: OwnedSemaphorePermit,
    },
    Flush {
        done: oneshot::Sender<()>,
    },
}

impl Appender {
    pub(crate) fn new(events: EventLogs, log: LogId) -> Self {
        let state = Arc::new(AppenderState {
            log,
            last: AtomicI64::new(0),
            waiting: AtomicUsize::new(0),
            failure: OnceLock::new(),
        });
        let (orders, waiting) = unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(run(events, Arc::clone(&state), waiting));
        let room = Arc::new(Semaphore::new(usize::try_from(ROOM).expect("32 bits")));
        Self { inner: Arc::new(AppenderInner { state, orders, room, _task: task }) }
    }

    /// The log that it appends to.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.inner.state.log
    }

    /// The number of events that wait to be stored.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.state.waiting.load(Ordering::Relaxed)
    }

    /// Appends an event, and returns its id when the event is stored.
    ///
    /// If the future is dropped while it waits for room, nothing is appended; if it is dropped later, the event is stored all
    /// the same.
    ///
    /// # Errors
    ///
    /// The error for an event that cannot be stored. [`Error::AppenderClosed`] if the log takes no more events.
    pub async fn append(&self, event: NewEvent) -> Result<i64, Error> {
        let (stored, id) = oneshot::channel();
        self.order(event, false, Some(stored)).await?;
        id.await.map_err(|_| self.closed())
    }

    /// Queues an event. Waits for room, but not until the event is stored; [`flush`](Self::flush) waits for that.
    ///
    /// If the future is dropped before it has returned, nothing is appended.
    ///
    /// # Errors
    ///
    /// As [`Appender::append`], also if an earlier event could not be stored.
    pub async fn push(&self, event: NewEvent) -> Result<(), Error> {
        self.order(event, false, None).await
    }

    /// Waits until all events that were handed over before are stored, and returns the id of the last one; 0 if there was none.
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::AppenderClosed`] if the log takes no more events.
    pub async fn flush(&self) -> Result<i64, Error> {
        let (done, flushed) = oneshot::channel();
        self.inner.orders.send(Order::Flush { done }).map_err(|_| self.closed())?;
        flushed.await.map_err(|_| self.closed())?;
        Ok(self.inner.state.last.load(Ordering::Acquire))
    }

    /// Finishes the log with a last event, after all events that were handed over before, and returns the last event's id when all
    /// of them are stored. Streams of the log end. The appender is closed: for events that clones hand over later, the error is
    /// [`Error::AppenderClosed`].
    ///
    /// If the future is dropped while it waits for room, nothing is appended; if it is dropped later, the log is finished all
    /// the same.
    ///
    /// # Errors
    ///
    /// As [`Appender::append`].
    pub async fn finish(&self, last: NewEvent) -> Result<i64, Error> {
        let (stored, id) = oneshot::channel();
        self.order(last, true, Some(stored)).await?;
        id.await.map_err(|_| self.closed())
    }

    async fn order(
        &self,
        event: NewEvent,
        finishes: bool,
        stored: Option<oneshot::Sender<i64>>,
    ) -> Result<(), Error> {
        event.check()?;
        let bytes = event.bytes();
        if bytes > MAX_BYTES {
            return Err(Error::Size { events: 1, bytes });
        }
        let AppenderInner { state, orders, room, .. } = &*self.inner;
        let cost = u32::try_from(bytes + OVERHEAD).unwrap_or(ROOM).min(ROOM);
        let room = Arc::clone(room).acquire_many_owned(cost).await.map_err(|_| self.closed())?;
        state.waiting.fetch_add(1, Ordering::Relaxed);
        orders.send(Order::Append { event, finishes, stored, room }).map_err(|_| self.closed())
    }

    fn closed(&self) -> Error {
        let AppenderState { log, failure, .. } = &*self.inner.state;
        Error::AppenderClosed { log: *log, cause: failure.get().map(Arc::clone) }
    }
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender")
            .field("log", &self.inner.state.log)
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

impl Drop for AppenderInner {
    fn drop(&mut self) {
        let AppenderState { log, waiting, failure, .. } = &*self.state;
        let lost = waiting.load(Ordering::Relaxed);
        if lost > 0 && failure.get().is_none() {
            tracing::warn!(%log, lost, "an appender was dropped without a flush: these events may not be stored");
        }
    }
}

/// Events that are stored together, and the callers that wait for them.
#[derive(Default)]
struct Gathered {
    events: Vec<NewEvent>,
    bytes: usize,
    finishes: bool,
    callers: Vec<(usize, oneshot::Sender<i64>)>,
    flushed: Vec<oneshot::Sender<()>>,
    rooms: Vec<OwnedSemaphorePermit>,
}

impl Gathered {
    /// Adds an order. Returns whether more may follow it in this batch.
    fn add(&mut self, order: Order) -> bool {
        match order {
            Order::Append { event, finishes, stored, room } => {
                self.bytes += event.bytes();
                self.finishes = finishes;
                self.callers.extend(stored.map(|caller| (self.events.len(), caller)));
                self.events.push(event);
                self.rooms.push(room);
            }
            Order::Flush { done } => self.flushed.push(done),
        }
        !self.finishes && self.events.len() < MAX_EVENTS && self.bytes < BATCH_BYTES
    }
}

/// Stores the events in the order in which they were handed over, until no handle is left, or the log takes no more events. The end
/// of this task tells all callers that wait, and all later ones.
async fn run(events: EventLogs, state: Arc<AppenderState>, mut orders: UnboundedReceiver<Order>) {
    let writer = WriterId::random();
    let mut sequence = 0;
    // An order that did not fit into the batch before.
    let mut next = None;
    loop {
        let order = match next.take() {
            Some(order) => order,
            None => match orders.recv().await {
                Some(order) => order,
                None => return,
            },
        };
        let mut gathered = Gathered::default();
        let mut has_room = gathered.add(order);
        while has_room && let Ok(order) = orders.try_recv() {
            // One append must take the whole batch.
            if let Order::Append { event, .. } = &order
                && gathered.bytes + event.bytes() > MAX_BYTES
            {
                next = Some(order);
                break;
            }
            has_room = gathered.add(order);
        }
        if !gathered.events.is_empty() {
            sequence += 1;
            let stored = match Batch::new(&gathered.events, gathered.finishes) {
                Ok(batch) => events.store(state.log, None, &batch.of(writer, sequence)).await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(ids) => {
                    state.waiting.fetch_sub(gathered.events.len(), Ordering::Relaxed);
                    state.last.store(*ids.end(), Ordering::Release);
                    if gathered.finishes {
                        let finished = Error::Finished { log: state.log, last: *ids.end() };
                        state.failure.get_or_init(|| Arc::new(finished));
                    }
                    for (number, caller) in gathered.callers {
                        let id = ids.start() + i64::try_from(number).expect("at most MAX_EVENTS");
                        // A caller that no longer waits is no error.
                        let _: Result<(), i64> = caller.send(id);
                    }
                }
                Err(error) => {
                    tracing::warn!(log = %state.log, %error, "an event log takes no more events");
                    state.failure.get_or_init(|| Arc::new(error));
                    return;
                }
            }
        }
        for caller in gathered.flushed {
            let _: Result<(), ()> = caller.send(());
        }
        if gathered.finishes {
            return;
        }
    }
}
