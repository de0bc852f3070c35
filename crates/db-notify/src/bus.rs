//! The bus: a handle, and what it shares with its two tasks.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use db_core::{Config, ConnectFailure, Pooler};
use sqlx::postgres::PgConnection;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::GapReason;
use crate::listener::{Deaf, Listening};
use crate::notifier::{NotifyError, Outbox};
use crate::routes::{Routes, Subscription};
use crate::{Topic, listener, notifier};

/// How a bus listens and sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusOptions {
    /// Processes hear each other within a namespace, `default` by default. It becomes part of a channel's name: at most 53
    /// bytes, no NUL.
    pub namespace: String,
    /// How long the link may be silent before the server is asked for a sign of life [15 s]. The server is told to do the same
    /// with its end of both connections.
    pub heartbeat: Duration,
    /// The shortest time between two statements that notify [2 ms].
    pub pace: Duration,
    /// The most notifications that wait to be sent [10 000]. Past it, one message says "everything".
    pub queue: usize,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            heartbeat: Duration::from_secs(15),
            pace: Duration::from_millis(2),
            queue: 10_000,
        }
    }
}

/// Why a bus could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// `LISTEN` silently cuts a channel's name at 63 bytes, and `pg_notify` refuses it.
    #[error("the namespace of a bus has 1 to 53 bytes and no NUL character")]
    Namespace,
    /// The first `LISTEN` failed.
    #[error("the bus could not listen on {to}: {failure}")]
    Listen {
        /// Role, host, port and database.
        to: String,
        /// What it met.
        failure: ConnectFailure,
    },
    /// The address leads through a pooler in transaction mode.
    #[error(
        "LISTEN on {to} would deliver nothing, since the address leads through a pooler: use the server's own address \
         (DATABASE_URL_DIRECT)"
    )]
    Pooled {
        /// Role, host, port and database.
        to: String,
    },
    /// LISTEN was answered, and what was then notified did not arrive.
    #[error(
        "LISTEN on {to} was answered, and nothing arrives: the address seems to lead through a pooler such as PgBouncer in \
         transaction mode, so use the server's own (DATABASE_URL_DIRECT)"
    )]
    Unheard {
        /// Role, host, port and database.
        to: String,
    },
}

impl OpenError {
    /// Whether waiting cannot mend it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Namespace | Self::Pooled { .. } | Self::Unheard { .. } => true,
            Self::Listen { failure, .. } => failure.is_final(),
        }
    }
}

/// A notification bus. Cheap to clone; clones are the same bus.
///
/// When the last clone is dropped, its tasks end; [`Bus::close`] also sends what waits.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

/// Not what waits to be sent or received: payloads are the program's.
impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("state", &self.state()).finish_non_exhaustive()
    }
}

struct Inner {
    shared: Arc<Shared>,
    /// The tasks hold `shared` but not `Inner`: dropping the last handle drops the set, which aborts them.
    tasks: Mutex<JoinSet<()>>,
    /// Tells whether they run still, as many as ask.
    running: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.routes.close();
    }
}

/// What the handle and the two tasks look at together.
pub(crate) struct Shared {
    pub(crate) routes: Arc<Routes>,
    pub(crate) outbox: Outbox,
    pub(crate) closing: CancellationToken,
    /// Told at each subscription: a lazy bus begins to listen at the first one.
    pub(crate) wanted: Notify,
    pub(crate) heartbeat: Duration,
    pub(crate) pace: Duration,
    connected: AtomicBool,
    /// They were ended before they were done.
    cut: AtomicBool,
    gaps: AtomicU64,
}

impl Shared {
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
    }

    pub(crate) fn gap(&self, reason: GapReason) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
        self.routes.gap(reason);
    }
}

/// The one channel of a namespace, if it can be listened to there.
fn channel(config: &Config, options: &BusOptions) -> Result<String, OpenError> {
    let namespace = &options.namespace;
    if !(1..=53).contains(&namespace.len()) || namespace.contains('\0') {
        return Err(OpenError::Namespace);
    }
    if config.pooler() != Pooler::None {
        return Err(OpenError::Pooled { to: config.to_string() });
    }
    Ok(format!("db_notify.{namespace}"))
}

/// How a bus stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusState {
    /// Whether LISTEN is in force. On a lazy bus it is not before somebody has subscribed.
    pub connected: bool,
    /// Topics that somebody in this process subscribes to.
    pub topics: usize,
    /// Subscriptions in this process.
    pub subscribers: usize,
    /// How often everybody was told of a gap.
    pub gaps: u64,
}

impl Bus {
    /// Connects, LISTENs, sees whether anything arrives, and starts the bus's two tasks on the current tokio runtime.
    ///
    /// `config` must lead to PostgreSQL itself: through `PgBouncer` in transaction mode, LISTEN succeeds and delivers
    /// nothing, which is found out within 2 s. Dropping the future closes the connections.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the namespace is not a name, or when the first LISTEN fails or delivers nothing. Later losses are mended and
    /// reported to subscribers as gaps.
    pub async fn open(config: &Config, options: BusOptions) -> Result<Self, OpenError> {
        let channel = channel(config, &options)?;
        let opened = listener::listen_and_hear(config, &channel, options.heartbeat).await;
        let both = opened.map_err(|deaf| match deaf {
            Deaf::Unheard => OpenError::Unheard { to: config.to_string() },
            Deaf::Met(error) => {
                OpenError::Listen { to: config.to_string(), failure: ConnectFailure::of(&error, config) }
            }
        })?;
        Ok(Self::start(config, channel, &options, Some(both)))
    }

    /// The same without a connection, until there is something to do: the bus LISTENs when somebody first subscribes, and
    /// tells who subscribed before LISTEN was in force by a [`Gap`](crate::Gap) when it is. Sending does not need LISTEN.
    ///
    /// Whatever keeps it from listening is tried again and logged, since nobody waits for the answer: a wrong password, too,
    /// and a pooler through which nothing arrives.
    ///
    /// # Errors
    ///
    /// [`OpenError::Namespace`] and [`OpenError::Pooled`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn lazy(config: &Config, options: &BusOptions) -> Result<Self, OpenError> {
        let channel = channel(config, options)?;
        Ok(Self::start(config, channel, options, None))
    }

    fn start(
        config: &Config,
        channel: String,
        options: &BusOptions,
        first: Option<(Listening, PgConnection)>,
    ) -> Self {
        let shared = Arc::new(Shared {
            routes: Arc::default(),
            outbox: Outbox::new(options.queue.max(1)),
            closing: CancellationToken::new(),
            wanted: Notify::new(),
            heartbeat: options.heartbeat,
            pace: options.pace,
            connected: AtomicBool::new(first.is_some()),
            cut: AtomicBool::new(false),
            gaps: AtomicU64::new(0),
        });
        let (mut tasks, running) = (JoinSet::new(), TaskTracker::new());
        let (listening, notifier) = first.unzip();
        let (theirs, its) = (config.clone(), channel.clone());
        let task = Arc::clone(&shared);
        tasks.spawn(running.track_future(async move {
            match listening {
                Some(listening) => listener::run(listening, theirs, its, task).await,
                None => listener::run_when_wanted(theirs, its, task).await,
            }
        }));
        let notifying = notifier::run(notifier, config.clone(), channel, Arc::clone(&shared));
        tasks.spawn(running.track_future(notifying));
        Self { inner: Arc::new(Inner { shared, tasks: Mutex::new(tasks), running }) }
    }

    /// Subscribes to a topic, in force when the call returns. `size` is how many notifications may wait (at least 1).
    #[must_use]
    pub fn subscribe(&self, topic: &Topic, size: usize) -> Subscription {
        let subscription = self.inner.shared.routes.subscribe(topic, size);
        self.inner.shared.wanted.notify_one();
        subscription
    }

    /// Notifies, and waits until the statement that carries it was done. While the server is away, that may be long.
    ///
    /// Dropping the future stops the wait only; the notification is sent all the same.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when it can never be sent, or the bus is closed first.
    pub async fn notify(&self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        let (sent, done) = oneshot::channel();
        self.inner.shared.outbox.push(topic, payload, Some(sent))?;
        done.await.map_err(|_| NotifyError::Closed)
    }

    /// Notifies without waiting for anything.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when it can never be sent.
    pub fn notify_soon(&self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        self.inner.shared.outbox.push(topic, payload, None)
    }

    /// How the bus stands now.
    #[must_use]
    pub fn state(&self) -> BusState {
        let shared = &self.inner.shared;
        let (topics, subscribers) = shared.routes.count();
        BusState {
            connected: shared.connected.load(Ordering::Acquire),
            topics,
            subscribers,
            gaps: shared.gaps.load(Ordering::Relaxed),
        }
    }

    /// Sends what waits, ends all subscriptions, and closes both connections, at most for `deadline`; what is not done then is
    /// given up. Says whether it was in time; asked again, it says what it said.
    ///
    /// Dropping the future leaves the bus closing, for as long as there is a handle to it: asked again, it waits on.
    pub async fn close(&self, deadline: Duration) -> bool {
        let Inner { shared, tasks, running } = &*self.inner;
        shared.outbox.close();
        shared.closing.cancel();
        running.close();
        if timeout(deadline, running.wait()).await.is_err() {
            shared.cut.store(true, Ordering::Release);
            tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        }
        !shared.cut.load(Ordering::Acquire)
    }
}
