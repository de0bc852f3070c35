//! Appending one by one, stored in batches.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::append::{Batch, MAX_BYTES, MAX_EVENTS};
use crate::stream::backoff;
use crate::{Error, EventLogs, LogId, NewEvent, WriterId};

/// How much may wait, in bytes. An event counts with its text and [`OVERHEAD`].
const ROOM: u32 = 8 << 20;

/// What an event costs beside its text.
const OVERHEAD: usize = 64;

/// How much text a batch takes before the next one begins.
const BATCH_BYTES: usize = 1 << 20;

/// Appends events one by one, and stores them in batches: at once when nothing is under way, else together with all that has
/// gathered meanwhile. One statement is under way at a time, so the events keep their order, and the busier the log is, the
/// larger its batches are. Cheap to clone; clones are the same appender, and many may use it at once.
///
/// What waits is bounded: past 8 MiB, whoever appends waits, too. A database that is away, takes no writes or has no room left is
/// waited for, and a batch whose answer was lost is stored once ([`EventLogs::append_once`]).
///
/// **Nothing is acknowledged before it is stored**: [`append`](Self::append) and [`flush`](Self::flush) return then. What was only
/// [pushed](Self::push) is lost when the last handle is dropped without a [`flush`](Self::flush), and said in the log.
#[derive(Clone)]
pub struct Appender {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    orders: UnboundedSender<Order>,
    room: Arc<Semaphore>,
    /// Dropped with the last handle, which ends it.
    _task: JoinSet<()>,
}

struct State {
    log: LogId,
    /// The last event that is stored, as far as this appender has come.
    last: AtomicI64,
    /// Events that wait to be stored.
    waiting: AtomicUsize,
    /// Why nothing can be appended any more.
    failure: OnceLock<Arc<Error>>,
}

enum Order {
    Append { event: NewEvent, stored: Option<oneshot::Sender<i64>>, room: OwnedSemaphorePermit },
    Flush { done: oneshot::Sender<()> },
}

impl Appender {
    pub(crate) fn new(events: EventLogs, log: LogId) -> Self {
        let state = Arc::new(State {
            log,
            last: AtomicI64::new(0),
            waiting: AtomicUsize::new(0),
            failure: OnceLock::new(),
        });
        let (orders, waiting) = unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(run(events, Arc::clone(&state), waiting));
        let room = Arc::new(Semaphore::new(usize::try_from(ROOM).expect("32 bits")));
        Self { inner: Arc::new(Inner { state, orders, room, _task: task }) }
    }

    /// The log that it appends to.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.inner.state.log
    }

    /// Events that wait to be stored.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.state.waiting.load(Ordering::Relaxed)
    }

    /// Appends an event, and returns its id when it is stored.
    ///
    /// Dropping the future before it has found room appends nothing; later, the event is stored all the same.
    ///
    /// # Errors
    ///
    /// What is wrong with the event. [`Error::AppenderClosed`] when the log cannot be appended to any more.
    pub async fn append(&self, event: NewEvent) -> Result<i64, Error> {
        let (stored, id) = oneshot::channel();
        self.order(event, Some(stored)).await?;
        id.await.map_err(|_| self.closed())
    }

    /// Hands an event over without waiting until it is stored, but for room. It counts as stored after the next
    /// [`flush`](Self::flush) that returns `Ok`.
    ///
    /// Dropping the future before it has returned appends nothing.
    ///
    /// # Errors
    ///
    /// As [`Appender::append`]: of an earlier event, too.
    pub async fn push(&self, event: NewEvent) -> Result<(), Error> {
        self.order(event, None).await
    }

    /// Waits until everything that was handed over before is stored, and returns the id of the last event of it; 0 if there was
    /// none. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::AppenderClosed`].
    pub async fn flush(&self) -> Result<i64, Error> {
        let (done, flushed) = oneshot::channel();
        self.inner.orders.send(Order::Flush { done }).map_err(|_| self.closed())?;
        flushed.await.map_err(|_| self.closed())?;
        Ok(self.inner.state.last.load(Ordering::Acquire))
    }

    async fn order(&self, event: NewEvent, stored: Option<oneshot::Sender<i64>>) -> Result<(), Error> {
        event.check()?;
        let bytes = event.bytes();
        if bytes > MAX_BYTES {
            return Err(Error::Size { events: 1, bytes });
        }
        let Inner { state, orders, room, .. } = &*self.inner;
        let cost = u32::try_from(bytes + OVERHEAD).unwrap_or(ROOM).min(ROOM);
        let room = Arc::clone(room).acquire_many_owned(cost).await.map_err(|_| self.closed())?;
        state.waiting.fetch_add(1, Ordering::Relaxed);
        orders.send(Order::Append { event, stored, room }).map_err(|_| self.closed())
    }

    fn closed(&self) -> Error {
        let State { log, failure, .. } = &*self.inner.state;
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

impl Drop for Inner {
    fn drop(&mut self) {
        let State { log, waiting, failure, .. } = &*self.state;
        let lost = waiting.load(Ordering::Relaxed);
        if lost > 0 && failure.get().is_none() {
            tracing::warn!(%log, lost, "events were handed over and not flushed: they may not be stored");
        }
    }
}

/// What is stored together, and who waits for it.
#[derive(Default)]
struct Gathered {
    events: Vec<NewEvent>,
    callers: Vec<(usize, oneshot::Sender<i64>)>,
    flushed: Vec<oneshot::Sender<()>>,
    rooms: Vec<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Gathered {
    /// Tells whether there is room for more.
    fn add(&mut self, order: Order) -> bool {
        match order {
            Order::Append { event, stored, room } => {
                self.bytes += event.bytes();
                self.callers.extend(stored.map(|caller| (self.events.len(), caller)));
                self.events.push(event);
                self.rooms.push(room);
            }
            Order::Flush { done } => self.flushed.push(done),
        }
        self.events.len() < MAX_EVENTS && self.bytes < BATCH_BYTES
    }
}

/// Stores what was ordered, until nobody can order any more, or the log takes nothing.
async fn run(events: EventLogs, state: Arc<State>, mut orders: UnboundedReceiver<Order>) {
    let writer = WriterId::random();
    let mut sequence = 0;
    // What did not fit into the batch before.
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
            // One that is large begins a batch of its own: all of a batch must fit into one append.
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
            match store(&events, state.log, &gathered.events, (writer, sequence)).await {
                Ok(first) => {
                    let count = gathered.events.len();
                    state.waiting.fetch_sub(count, Ordering::Relaxed);
                    state.last.store(first + id(count) - 1, Ordering::Release);
                    for (number, caller) in gathered.callers {
                        // A caller that no longer waits is no error.
                        let _: Result<(), i64> = caller.send(first + id(number));
                    }
                }
                Err(error) => {
                    tracing::warn!(log = %state.log, %error, "an event log takes no more events");
                    state.failure.get_or_init(|| Arc::new(error));
                    // Whoever waits, and whoever comes, is told by the end of this task.
                    return;
                }
            }
        }
        for caller in gathered.flushed {
            let _: Result<(), ()> = caller.send(());
        }
    }
}

fn id(count: usize) -> i64 {
    i64::try_from(count).expect("at most MAX_EVENTS")
}

/// Stores a batch, for as long as it takes; returns the id of its first event.
async fn store(
    events: &EventLogs,
    log: LogId,
    batch: &[NewEvent],
    source: (WriterId, i64),
) -> Result<i64, Error> {
    let mut pauses = backoff();
    loop {
        let batch = Batch::new(batch, false)?.from(source.0, source.1);
        match events.append_batch(log, None, &batch).await {
            Ok(ids) => return Ok(*ids.start()),
            Err(error) if error.may_pass() => {
                tracing::warn!(%log, %error, "append not done yet");
                sleep(pauses.next().unwrap_or(Duration::from_secs(1))).await;
            }
            Err(error) => return Err(error),
        }
    }
}
