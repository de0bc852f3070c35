//! The bus: a handle, and what it shares with its two tasks.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use db_core::{Config, ConnectFailure, Pooler, Session};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::GapReason;
use crate::link::Link;
use crate::listening::{Both, Deaf, LISTEN_LIMIT, Listening, listen_and_hear};
use crate::notifier::{Notifier, NotifyError};
use crate::options::{BusOptions, BusOptionsError};
use crate::outbox::{self, Outbox};
use crate::postgres::PostgresLink;
use crate::routes::{Counts, Routes};
use crate::state::{BusState, Condition, Counters, Trouble};
use crate::subscription::Subscription;
use crate::unreadable::Unreadable;
use crate::{Channel, Topic, wire};

/// Why a bus could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option is wrong.
    #[error(transparent)]
    Options(#[from] BusOptionsError),
    /// The first session, or the first `LISTEN`, failed.
    #[error("the bus could not listen on {to}: {failure}")]
    Listen {
        /// Role, host, port and database.
        to: String,
        /// What it met.
        failure: ConnectFailure,
    },
    /// The address leads to a standby, which can neither LISTEN nor NOTIFY.
    #[error("the bus could not listen on {to}: {}", Trouble::Standby)]
    Standby {
        /// Role, host, port and database.
        to: String,
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
    NothingDelivered {
        /// Role, host, port and database.
        to: String,
    },
}

impl OpenError {
    /// Whether waiting cannot mend it. A standby may be promoted.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Options(_) | Self::Pooled { .. } | Self::NothingDelivered { .. } => true,
            Self::Listen { failure, .. } => failure.is_final(),
            Self::Standby { .. } => false,
        }
    }

    fn of<L: Link>(deaf: &Deaf, link: &L) -> Self {
        let to = link.to_string();
        match deaf {
            Deaf::NothingDelivered => Self::NothingDelivered { to },
            Deaf::Met(error) if Trouble::of(error) == Trouble::Standby => Self::Standby { to },
            Deaf::Met(error) => Self::Listen { to, failure: link.explain(error) },
        }
    }
}

/// A notification bus. Cheap to clone; clones are the same bus.
///
/// When the last clone is dropped, its tasks end; [`Bus::close`] also sends what waits. They run on the runtime that the bus was made
/// on: when that ends, subscriptions end, and notifying says [`NotifyError::Closed`].
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
    /// Where they run.
    runtime: Handle,
    channel: Channel,
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
    pub(crate) condition: Condition,
    pub(crate) counters: Arc<Counters>,
    pub(crate) heartbeat: Duration,
    pub(crate) answer: Duration,
    pub(crate) pace: Duration,
    /// The tasks were ended before they were done.
    cut: AtomicBool,
}

impl Shared {
    fn new(options: &BusOptions) -> Self {
        let counters = Arc::<Counters>::default();
        Self {
            routes: Arc::new(Routes::new(Arc::clone(&counters))),
            outbox: Outbox::new(options.queue(), Arc::clone(&counters)),
            closing: CancellationToken::new(),
            condition: Condition::default(),
            counters,
            heartbeat: options.heartbeat,
            answer: options.answer,
            pace: options.pace,
            cut: AtomicBool::new(false),
        }
    }

    /// Nothing arrives any more: all subscriptions end.
    pub(crate) fn hears_no_more(&self) {
        self.condition.lost();
        self.routes.close();
    }

    /// Tells everybody that something may have been missed.
    pub(crate) fn gap(&self, reason: GapReason) {
        self.counters.gaps.add(1);
        self.routes.gap(reason);
    }
}

/// Where the bus of this address would be, if it can be listened to there.
fn postgres(config: &Config, options: &BusOptions) -> Result<PostgresLink, OpenError> {
    options.check()?;
    if config.pooler() != Pooler::None {
        return Err(OpenError::Pooled { to: config.to_string() });
    }
    Ok(PostgresLink::new(config, options))
}

impl Bus {
    /// Connects, LISTENs, sees whether anything arrives, and starts the bus's two tasks on the current tokio runtime.
    ///
    /// `config` must lead to PostgreSQL itself: through `PgBouncer` in transaction mode, LISTEN succeeds and delivers
    /// nothing, which is found out within [`BusOptions::answer`]. Dropping the future closes the connections.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when an option is wrong, or when the first LISTEN fails or delivers nothing. Later losses are mended and
    /// reported to subscribers as gaps.
    pub async fn open(config: &Config, options: BusOptions) -> Result<Self, OpenError> {
        Self::with_link(postgres(config, &options)?, options).await
    }

    /// The same over another link than the usual one to PostgreSQL: such as `MemoryLink`, in tests.
    ///
    /// # Errors
    ///
    /// As [`Bus::open`].
    pub async fn with_link<L: Link>(link: L, options: BusOptions) -> Result<Self, OpenError> {
        let channel = options.check()?;
        let opened = listen_and_hear(&link, &channel, &[], options.answer).await;
        let both = opened.map_err(|deaf| OpenError::of(&deaf, &link))?;
        Ok(Self::start(link, channel, &options, Some(both)))
    }

    /// The same without a connection, until there is something to do: the bus LISTENs when somebody first subscribes, and
    /// tells who subscribed before LISTEN was in force by a [`Gap`](crate::Gap) when it is. Sending does not need LISTEN.
    ///
    /// Whatever keeps it from listening is tried again and logged, since nobody waits for the answer: a wrong password, too,
    /// and a pooler through which nothing arrives.
    ///
    /// # Errors
    ///
    /// [`OpenError::Options`] and [`OpenError::Pooled`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn lazy(config: &Config, options: &BusOptions) -> Result<Self, OpenError> {
        Self::lazy_with_link(postgres(config, options)?, options)
    }

    /// The same over another link.
    ///
    /// # Errors
    ///
    /// [`OpenError::Options`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn lazy_with_link<L: Link>(link: L, options: &BusOptions) -> Result<Self, OpenError> {
        let channel = options.check()?;
        Ok(Self::start(link, channel, options, None))
    }

    fn start<L: Link>(link: L, channel: Channel, options: &BusOptions, first: Option<Both<L>>) -> Self {
        let shared = Arc::new(Shared::new(options));
        if first.is_some() {
            shared.condition.connected();
        }
        let (listener, sender) = first.unzip();
        let (senders, fresh) = mpsc::channel(1);
        let listening = Listening {
            link: link.clone(),
            channel: channel.clone(),
            shared: Arc::clone(&shared),
            listener,
            senders,
            others: HashSet::new(),
            unreadable: Unreadable::default(),
        };
        let notifier = Notifier {
            link,
            channel: channel.clone(),
            shared: Arc::clone(&shared),
            sender,
            fresh,
            refused: false,
        };
        // However a task ends, by a panic or with its runtime, also before its first poll: nobody waits for one that is not there.
        let hears = scopeguard::guard(Arc::clone(&shared), |shared| shared.hears_no_more());
        let sends = scopeguard::guard(Arc::clone(&shared), |shared| shared.outbox.abandon());
        let (mut tasks, running) = (JoinSet::new(), TaskTracker::new());
        tasks.spawn(running.track_future(listening.run(hears)));
        tasks.spawn(running.track_future(notifier.run(sends)));
        let runtime = Handle::current();
        Self { inner: Arc::new(Inner { shared, tasks: Mutex::new(tasks), running, runtime, channel }) }
    }

    /// The runtime that the bus's tasks run on, where others may run that go with it; none once nothing can be heard any more,
    /// because the bus was closed or that runtime has ended.
    #[must_use]
    pub fn runtime(&self) -> Option<Handle> {
        (!self.inner.shared.routes.is_closed()).then(|| self.inner.runtime.clone())
    }

    /// Subscribes to a topic, in force when the call returns. `size` is how many notifications may wait (at least 1).
    #[must_use]
    pub fn subscribe(&self, topic: &Topic, size: usize) -> Subscription {
        self.subscribe_all([topic], size)
    }

    /// Subscribes to many topics together, in force when the call returns. `size` is how many notifications may wait, of all of
    /// them (at least 1).
    #[must_use]
    pub fn subscribe_all<'t>(
        &self,
        topics: impl IntoIterator<Item = &'t Topic>,
        size: usize,
    ) -> Subscription {
        let mut subscription = Subscription::open(&self.inner.shared.routes, size);
        for topic in topics {
            subscription.subscribe(topic);
        }
        subscription
    }

    /// Listens to a channel of PostgreSQL's as it is: what triggers and other programs NOTIFY. `size` is how many notifications
    /// may wait (at least 1).
    ///
    /// The first delivery is a [`Gap`](crate::Gap), when LISTEN is in force: what is looked at then is looked at while nothing
    /// can be missed any more. UNLISTEN follows when the last who listens to the channel here is dropped.
    ///
    /// Each channel costs the server time with each notification, in each of its databases; topics cost it nothing.
    #[must_use]
    pub fn listen(&self, channel: &Channel, size: usize) -> Subscription {
        let mut subscription = Subscription::open(&self.inner.shared.routes, size);
        subscription.listen(channel);
        subscription
    }

    /// Notifies, and waits until the statement that carries it was done. While the server is away, that may be long.
    ///
    /// Dropping the future stops the wait only; the notification is sent all the same, unless the future was never polled.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Closed`] when the bus is closed first.
    pub async fn notify(&self, topic: &Topic) -> Result<(), NotifyError> {
        self.notify_with(topic, "").await
    }

    /// The same with a payload.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when it can never be sent, or the bus is closed first.
    pub async fn notify_with(&self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        let (sent, done) = oneshot::channel();
        self.inner.shared.outbox.push(topic, payload, Some(sent))?;
        done.await.map_err(|_| NotifyError::Closed)
    }

    /// Notifies without waiting for anything.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Closed`].
    pub fn notify_soon(&self, topic: &Topic) -> Result<(), NotifyError> {
        self.notify_soon_with(topic, "")
    }

    /// The same with a payload.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when it can never be sent.
    pub fn notify_soon_with(&self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        self.inner.shared.outbox.push(topic, payload, None)
    }

    /// Notifies within a transaction: sent exactly if it commits, by the server, even if this process is killed right after.
    ///
    /// It has a price: all transactions that do so commit one after the other, in the whole server, which at 50 connections
    /// leaves a fifth of the rate. Unless a lost wake-up is worse than that,
    /// [`NotifyAfterCommit`](crate::NotifyAfterCommit) is the one to use.
    ///
    /// The transaction's database must be the bus's. Dropping the future leaves the transaction to be rolled back, as with any
    /// statement.
    ///
    /// # Errors
    ///
    /// [`NotifyInError::Refused`] when it can never be sent, and what the statement meets.
    pub async fn notify_in(
        &self,
        db: &mut Session,
        topic: &Topic,
        payload: &str,
    ) -> Result<(), NotifyInError> {
        outbox::check(topic, payload)?;
        sqlx::query("select pg_notify($1, $2)")
            .bind(self.inner.channel.as_str())
            .bind(wire::encode([(topic.as_str(), payload)]).concat())
            .execute(db)
            .await
            .map_err(db_core::Error::from)?;
        Ok(())
    }

    /// How the bus stands now.
    #[must_use]
    pub fn state(&self) -> BusState {
        let Shared { routes, outbox, condition, counters, .. } = &*self.inner.shared;
        let Counts { topics, channels, subscribers } = routes.count();
        let sessions = condition.read();
        BusState {
            connected_since: sessions.connected_since,
            last_heartbeat: sessions.last_heartbeat,
            trouble: sessions.trouble(),
            queue_usage: sessions.queue_usage,
            topics,
            channels,
            subscribers,
            pending: outbox.pending(),
            sent: counters.sent.get(),
            coalesced: counters.coalesced.get(),
            gated: counters.gated.get(),
            gaps: counters.gaps.get(),
            lagged: counters.lagged.get(),
        }
    }

    /// Sends what waits, ends all subscriptions, and closes both connections, at most for `deadline`; what is not done then is
    /// given up. Says whether it was in time; asked again, it says what it said.
    ///
    /// Dropping the future leaves the bus closing, for as long as there is a handle to it: asked again, it waits on.
    pub async fn close(&self, deadline: Duration) -> bool {
        let Inner { shared, tasks, running, .. } = &*self.inner;
        shared.outbox.close();
        shared.closing.cancel();
        running.close();
        if timeout(deadline, running.wait()).await.is_err() {
            shared.cut.store(true, Ordering::Release);
            // As they are dropped, they tell those who wait.
            tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        }
        !shared.cut.load(Ordering::Acquire)
    }

    /// As [`notify_soon_with`](Self::notify_soon_with), and tells when it was sent.
    pub(crate) fn notify_then(
        &self,
        topic: &Topic,
        payload: &str,
        sent: oneshot::Sender<()>,
    ) -> Result<(), NotifyError> {
        self.inner.shared.outbox.push(topic, payload, Some(sent))
    }

    /// Where the bus's tasks run, or ran.
    pub(crate) fn home(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Tells those who follow these topics that something may have been missed.
    pub(crate) fn gap_of(&self, topics: &[Topic], reason: GapReason) {
        self.inner.shared.routes.gap_of(topics, reason);
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }

    /// Whether LISTEN is in force, as far as it is known.
    pub(crate) fn listens(&self) -> bool {
        self.inner.shared.condition.read().connected_since.is_some()
    }

    /// How long it may take at most to know that it is not.
    pub(crate) fn silence(&self) -> Duration {
        self.inner.shared.heartbeat + self.inner.shared.answer.max(LISTEN_LIMIT)
    }
}

/// Why a transaction could not notify.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotifyInError {
    /// It can never be sent. The transaction can go on.
    #[error(transparent)]
    Refused(#[from] NotifyError),
    /// The statement failed, and with it the transaction.
    #[error("could not notify within the transaction: {0}")]
    Statement(#[from] db_core::Error),
}
