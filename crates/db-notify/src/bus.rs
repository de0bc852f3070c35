//! The handle of a bus.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use db_core::{Config, Pooler, Session};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::deliver::{Counts, GapReason, Subscription};
use crate::error::{NotifyError, NotifyInError, OpenError};
use crate::link::Link;
use crate::link::postgres::PostgresLink;
use crate::listen::{self, LISTEN_TIMEOUT, Listening, Sessions, Unreadable};
use crate::notifier::Notifier;
use crate::options::{BusOptions, PREFIX};
use crate::shared::BusShared;
use crate::state::{BusState, Counters};
use crate::{Channel, Observer, Topic, outbox, wire};

/// A notification bus. Cheap to clone; clones are the same bus.
///
/// A bus has two tasks, which run on the runtime where the bus was made. They end when the last clone is dropped; [`Bus::close`] first
/// sends the waiting notifications. When that runtime ends, subscriptions end and notifying returns [`NotifyError::Closed`].
#[derive(Clone)]
pub struct Bus {
    inner: Arc<BusInner>,
}

/// Shows no payload: payloads are data of the program.
impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("state", &self.state()).finish_non_exhaustive()
    }
}

struct BusInner {
    shared: Arc<BusShared>,
    /// The tasks hold `shared` but not `BusInner`: dropping the last handle drops the set, which aborts the tasks.
    tasks: Mutex<JoinSet<()>>,
    /// Any number of callers can wait here for the end of the tasks.
    running: TaskTracker,
    /// The runtime of the tasks.
    runtime: Handle,
    channel: Channel,
}

impl Drop for BusInner {
    fn drop(&mut self) {
        self.shared.routes.close();
    }
}

/// The link to the server of this address, unless the address leads through a pooler.
fn postgres(config: &Config, options: &BusOptions) -> Result<PostgresLink, OpenError> {
    options.check()?;
    if config.pooler() != Pooler::None {
        return Err(OpenError::Pooled { to: config.to_string() });
    }
    Ok(PostgresLink::new(config, options))
}

impl Bus {
    /// Connects, LISTENs, checks that its own notification arrives, and starts the two tasks of the bus on the current tokio
    /// runtime.
    ///
    /// `config` must lead to PostgreSQL itself. Through `PgBouncer` in transaction mode, LISTEN succeeds and nothing is
    /// delivered, which the bus notices within [`BusOptions::answer`]. Dropping the future closes the connections.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when an option is out of its range, or when the first LISTEN fails or delivers nothing. After a later loss the
    /// bus connects again, and subscribers receive a gap.
    pub async fn open(config: &Config, options: BusOptions) -> Result<Self, OpenError> {
        Self::with_link(postgres(config, &options)?, options).await
    }

    /// As [`Bus::open`], with a link of the caller's, such as `MemoryLink` in tests.
    ///
    /// # Errors
    ///
    /// As [`Bus::open`].
    pub async fn with_link<L: Link>(link: L, options: BusOptions) -> Result<Self, OpenError> {
        let channel = options.check()?;
        let opened = listen::open_sessions(&link, &channel, &[], options.answer).await;
        let sessions = opened.map_err(|error| error.into_open_error(&link))?;
        Ok(Self::start(link, channel, &options, Some(sessions)))
    }

    /// Makes a bus that connects at its first use. The bus LISTENs at the first subscription. When LISTEN is in force, the
    /// subscriptions made before receive a [`Gap`](crate::Gap). Sending does not need LISTEN.
    ///
    /// The bus logs and retries each failure to listen, also a wrong password and a pooler that delivers nothing, since no caller
    /// waits for the result.
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

    /// As [`Bus::lazy`], with a link of the caller's.
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

    fn start<L: Link>(link: L, channel: Channel, options: &BusOptions, first: Option<Sessions<L>>) -> Self {
        let shared = Arc::new(BusShared::new(options));
        if first.is_some() {
            shared.condition.connected();
        }
        let (listener, sender) = first.unzip();
        let (new_senders, senders) = mpsc::channel(1);
        let listening = Listening {
            link: link.clone(),
            channel: channel.clone(),
            shared: Arc::clone(&shared),
            listener,
            new_senders,
            raw_channels: HashSet::new(),
            unreadable: Unreadable::default(),
        };
        let notifier = Notifier {
            link,
            channel: channel.clone(),
            shared: Arc::clone(&shared),
            sender,
            senders,
            logged_refusal: false,
        };
        // A task may end by a panic or with its runtime, also before its first poll. The guards then end all waits for it.
        let listens = scopeguard::guard(Arc::clone(&shared), |shared| shared.stop_listening());
        let sends = scopeguard::guard(Arc::clone(&shared), |shared| shared.outbox.abandon());
        let (mut tasks, running) = (JoinSet::new(), TaskTracker::new());
        tasks.spawn(running.track_future(listening.run(listens)));
        tasks.spawn(running.track_future(notifier.run(sends)));
        let runtime = Handle::current();
        Self { inner: Arc::new(BusInner { shared, tasks: Mutex::new(tasks), running, runtime, channel }) }
    }

    /// The runtime of the tasks of the bus, for other tasks that are to end with the bus. `None` once no notification can arrive any
    /// more, because the bus was closed or that runtime has ended.
    #[must_use]
    pub fn runtime(&self) -> Option<Handle> {
        (!self.inner.shared.routes.is_closed()).then(|| self.inner.runtime.clone())
    }

    /// Subscribes to a topic, in force when the call returns. The queue of the subscription holds `size` notifications (at least 1).
    #[must_use]
    pub fn subscribe(&self, topic: &Topic, size: usize) -> Subscription {
        self.subscribe_all([topic], size)
    }

    /// Subscribes to several topics with one queue, in force when the call returns. The queue holds `size` notifications (at least 1).
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

    /// Listens to a channel of PostgreSQL, for notifications of triggers and other programs. The queue holds `size` notifications (at
    /// least 1).
    ///
    /// The first delivery is a [`Gap`](crate::Gap), when LISTEN is in force. A reader that reads after this gap misses no
    /// notification. When the last subscription to the channel is dropped, the bus sends UNLISTEN.
    ///
    /// Each channel costs the server time for each notification in any of its databases. A topic costs the server nothing.
    #[must_use]
    pub fn listen(&self, channel: &Channel, size: usize) -> Subscription {
        let mut subscription = Subscription::open(&self.inner.shared.routes, size);
        subscription.listen(channel);
        subscription
    }

    /// Notifies a topic, and waits until the statement with the notification is done. While the server is away, the wait has no limit.
    ///
    /// Dropping the future ends the wait only: the notification is still sent, unless the future was never polled.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Closed`] when the bus is closed before.
    pub async fn notify(&self, topic: &Topic) -> Result<(), NotifyError> {
        self.notify_with(topic, "").await
    }

    /// As [`Bus::notify`], with a payload.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when the payload cannot be sent, or the bus is closed before.
    pub async fn notify_with(&self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        let (sent, receipt) = oneshot::channel();
        self.inner.shared.outbox.push(topic, payload, Some(sent))?;
        receipt.await.map_err(|_| NotifyError::Closed)
    }

    /// Notifies a topic without waiting: the notifier sends it.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Closed`].
    pub fn notify_soon(&self, topic: &Topic) -> Result<(), NotifyError> {
        self.notify_soon_with(topic, "")
    }

    /// As [`Bus::notify_soon`], with a payload.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when the payload cannot be sent, or the bus is closed.
    pub fn notify_soon_with(&self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        self.inner.shared.outbox.push(topic, payload, None)
    }

    /// Notifies within a transaction. The server sends the notification if and only if the transaction commits, even if this process
    /// is killed right after the commit.
    ///
    /// The price: all such transactions of the server commit one after the other. With 50 connections, this leaves a fifth of
    /// the rate.
    /// Use [`NotifyAfterCommit`](crate::NotifyAfterCommit), unless a lost notification is worse than that.
    ///
    /// The transaction must be in the database of the bus. Dropping the future is like dropping the future of any statement: the
    /// transaction is to be rolled back.
    ///
    /// # Errors
    ///
    /// [`NotifyInError::Refused`] when the payload cannot be sent; [`NotifyInError::Statement`] when the statement fails.
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
            .await?;
        Ok(())
    }

    /// The namespace of the topics.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let channel = self.inner.channel.as_str();
        channel.strip_prefix(PREFIX).unwrap_or(channel)
    }

    /// Adds an observer, which hears from now on what happens on the bus. It stays for as long as the bus.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.counters().observers.add(observer);
    }

    /// The state of the bus at this moment.
    #[must_use]
    pub fn state(&self) -> BusState {
        let BusShared { routes, outbox, condition, counters, .. } = &*self.inner.shared;
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
            received_gaps: counters.received_gaps(),
            lagged: counters.lagged.get(),
        }
    }

    /// Sends the waiting notifications, ends all subscriptions, and closes both connections. After `deadline` the rest is given up.
    /// Returns true if everything finished within `deadline`. Later calls return the same value.
    ///
    /// Dropping the future leaves the bus closing, as long as a handle exists. Another call waits again.
    pub async fn close(&self, deadline: Duration) -> bool {
        let BusInner { shared, tasks, running, .. } = &*self.inner;
        shared.outbox.close();
        shared.closing.cancel();
        running.close();
        if timeout(deadline, running.wait()).await.is_err() {
            shared.aborted.store(true, Ordering::Release);
            // Their guards end all waits for them.
            tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        }
        !shared.aborted.load(Ordering::Acquire)
    }

    /// As [`notify_soon_with`](Self::notify_soon_with). `sent` gets its value when the notification was sent.
    pub(crate) fn notify_with_receipt(
        &self,
        topic: &Topic,
        payload: &str,
        sent: oneshot::Sender<()>,
    ) -> Result<(), NotifyError> {
        self.inner.shared.outbox.push(topic, payload, Some(sent))
    }

    /// The runtime of the tasks, which may have ended.
    pub(crate) fn task_runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Puts a gap into the queue of each subscription to one of these topics.
    pub(crate) fn gap_for(&self, topics: &[Topic], reason: GapReason) {
        self.inner.shared.routes.gap_for(topics, reason);
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }

    /// Whether LISTEN is in force, as far as the bus knows.
    pub(crate) fn is_listening(&self) -> bool {
        self.inner.shared.condition.read().connected_since.is_some()
    }

    /// How long it may take until the bus notices a lost link.
    pub(crate) fn time_to_notice_loss(&self) -> Duration {
        self.inner.shared.heartbeat + self.inner.shared.answer.max(LISTEN_TIMEOUT)
    }
}
