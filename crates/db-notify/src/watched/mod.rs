//! Notifications that are sent only if a process watches their topic.
//!
//! # The form of an announcement
//!
//! Processes announce on the bus itself what they watch, as payloads of a topic for announcements:
//!
//! ```text
//! announcement = sign node "." number " " *topic
//! sign         = "+" / "-"        ; watches from now on, or no longer
//! node         = 16 hexadecimal digits, the number of a process from its start to its end
//! number       = hexadecimal, grows with each announcement of the node
//! topic        = length ":" text  ; the length in bytes, decimal
//! ```
//!
//! ```text
//! +00000000000000a7.2 16:build_events_17115:build_events_42
//! │└──── node ────┘ │ └──── a topic ────┘└── another one ─┘
//! └ watches         └ the node's second announcement
//! ```
//!
//! `tests/golden/announcements.txt` fixes the form, since old and new processes must agree on it.
//!
//! # Files
//!
//! | file | holds |
//! |---|---|
//! | `marks.rs` | the rules of the map: who watches what, and what is sent. Pure |
//! | `announcer.rs` | the rules of announcing: when, what, and what is late. Pure |
//! | `announcement.rs` | the form of an announcement |
//! | `task.rs` | the task, which follows the rules with a clock and the bus |

mod announcement;
mod announcer;
mod marks;
mod task;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use db_core::Session;
use derive_setters::Setters;
use futures_util::{Stream, StreamExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::announcer::Announcer;
use self::marks::{Marks, Spans, Verdict};
use self::task::{MapShared, MapState, TaskGuard};
use crate::deliver::Delivery;
use crate::options::DAY;
use crate::state::Counter;
use crate::{Bus, NotifyError, Subscription, Topic};

/// Options of [`WatchedTopics`]. All processes that share a map must use the same ones.
#[derive(Debug, Clone, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct WatchOptions {
    /// The interval at which each process announces again all that it watches (default 30 s, from 10 ms to 1 day; a value
    /// outside counts as the nearest one). A mark expires three intervals after its last renewal. A process that has just
    /// started, or had a gap, sends all notifications for two intervals.
    pub renewal: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { renewal: Duration::from_secs(30) }
    }
}

/// The map of watched topics: which process watches which topic, and a [`notify`](Self::notify) that sends only if a process
/// watches the topic. Cheap to clone; clones are the same map.
///
/// Use it for topics that are notified often and watched rarely, such as the events of a build: each NOTIFY wakes every
/// listening process, whether or not it watches the topic.
///
/// ```
/// # db_testkit::run(async |db| {
/// # let config = db_core::Config::from_url(&db.url())?;
/// # let bus = db_notify::Bus::open(&config, db_notify::BusOptions::default()).await?;
/// use db_notify::{Topic, WatchOptions, WatchedTopics};
///
/// let builds = WatchedTopics::new(&bus, &Topic::new("builds/watched")?, &WatchOptions::default());
/// let topic = Topic::new("builds/17")?;
///
/// // The reader: first watch, then read.
/// let mut watch = builds.watch(&topic, 1);
/// // The writer: first store, then notify.
/// let is_watched = builds.notify(&topic)?;
/// watch.recv().await;
/// # assert!(is_watched);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
///
/// # When in doubt, it sends
///
/// * A process that has just started, or had a [gap](crate::Gap), may not know of all watchers. It sends all notifications for
///   two renewals, and also while LISTEN is not in force.
/// * An announcement may cross a notification that is being dropped. The map remembers what it dropped lately, and sends it when
///   the announcement arrives; after a gap, it sends all that it remembers.
/// * A map whose task has ended, with the runtime of the bus or by a panic, sends all notifications.
/// * A mark lasts for three renewals. So the map forgets a process that was killed, and keeps one that renews late.
/// * A process whose announcement was late tells its own watchers by a gap, once the announcement was sent.
///
/// Renewals are spread by jitter. The time is tokio's, which a test can pause.
#[derive(Clone)]
pub struct WatchedTopics {
    inner: Arc<MapInner>,
}

struct MapInner {
    shared: Arc<MapShared>,
    /// Empty before the task starts. The task holds `shared` but not `MapInner`: dropping the last handle drops the set, which
    /// aborts the task.
    task: OnceLock<JoinSet<()>>,
}

/// The state of a map at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchedState {
    /// Topics that are watched in this process.
    pub here: usize,
    /// Topics that are watched in other processes, as far as this process knows.
    pub elsewhere: usize,
    /// Whether all notifications are sent, because an announcement may have been missed.
    pub in_doubt: bool,
    /// Notifications that were dropped, because no process watched their topic.
    pub gated: u64,
    /// Dropped notifications that were sent later, because an announcement crossed them or may have been missed.
    pub recovered: u64,
}

/// How many topics with a dropped notification are remembered.
const REMEMBERED: usize = 100_000;

/// The size of the queue of announcements. When it is full, its gap makes the map send all notifications.
const ANNOUNCEMENTS: usize = 10_000;

impl WatchedTopics {
    /// Makes a map. `announcements` is the topic for announcements. All processes that share the map must agree on that topic and
    /// on the options.
    ///
    /// The map has a task, which ends when the last handle and the last [`Watch`] are dropped, or when the bus is closed. The task
    /// runs on the runtime of the bus, from whatever thread the map is made. It starts at once on a bus that listens, and at
    /// the first use on another one, such as a [lazy](Bus::lazy) bus.
    ///
    /// # Panics
    ///
    /// When the operating system gives no random numbers.
    #[must_use]
    pub fn new(bus: &Bus, announcements: &Topic, options: &WatchOptions) -> Self {
        let renewal = options.renewal.clamp(Duration::from_millis(10), DAY);
        let spans = Spans {
            mark: renewal * 3,
            doubt: renewal * 2,
            // The map may be wrong for that long before this process notices.
            memory: renewal * 2 + bus.time_to_notice_loss(),
            remembered: REMEMBERED,
        };
        let now = Instant::now();
        let state =
            MapState { marks: Marks::new(spans, now), announcer: Announcer::new(renewal, now), last: 0 };
        let shared = Arc::new(MapShared {
            bus: bus.clone(),
            announcements: announcements.clone(),
            // Not from a seeded generator: a process ignores the announcements of its own number, also those of another process.
            node: getrandom::u64().expect("the operating system gives random numbers").max(1),
            state: Mutex::new(state),
            changed: Notify::new(),
            logged_unreadable: AtomicBool::new(false),
            gated: Counter::default(),
            recovered: Counter::default(),
        });
        let watched = Self { inner: Arc::new(MapInner { shared, task: OnceLock::new() }) };
        if bus.is_listening() {
            watched.start_task();
        }
        watched
    }

    /// Starts the task, unless it was started.
    fn start_task(&self) -> &MapShared {
        let MapInner { shared, task } = &*self.inner;
        task.get_or_init(|| {
            let subscription = shared.bus.subscribe(&shared.announcements, ANNOUNCEMENTS);
            // Announcements arrive from now on. Processes that announced before will renew.
            shared.lock().marks.distrust(Instant::now());
            let mut task = JoinSet::new();
            let guard = TaskGuard(Arc::clone(shared));
            // On the runtime of the bus: when it ends, all subscriptions end.
            task.spawn_on(task::run(guard, subscription), shared.bus.task_runtime());
            task
        });
        shared
    }

    /// Watches a topic: subscribes to it, in force when the call returns, and lets all processes send notifications of it. The
    /// queue of the subscription holds `size` notifications (at least 1).
    ///
    /// A reader that reads after this call misses no notification.
    #[must_use]
    pub fn watch(&self, topic: &Topic, size: usize) -> Watch {
        let shared = self.start_task();
        let subscription = shared.bus.subscribe(topic, size);
        let mut state = shared.lock();
        if state.marks.watch(topic) {
            state.announcer.began(topic, Instant::now());
            shared.changed.notify_one();
        }
        drop(state);
        Watch { subscription, topic: topic.clone(), watched: self.clone() }
    }

    /// Notifies a topic if a process watches it, or may watch it. Returns whether the notification is sent. It is sent soon, as by
    /// [`Bus::notify_soon`].
    ///
    /// The notification has no payload: a watcher that begins a moment later receives it, too.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Closed`].
    pub fn notify(&self, topic: &Topic) -> Result<bool, NotifyError> {
        let shared = self.start_task();
        // Without LISTEN, no announcement arrives.
        if shared.bus.is_listening() && shared.lock().marks.decide(topic, Instant::now()) == Verdict::Drop {
            shared.gated.add(1);
            shared.bus.counters().gated.add(1);
            return Ok(false);
        }
        shared.bus.notify_soon(topic)?;
        Ok(true)
    }

    /// Notifies a topic right after the commit of a transaction, under the conditions of [`Self::notify`] and of
    /// [`NotifyAfterCommit`](crate::NotifyAfterCommit).
    pub fn notify_after(&self, db: &mut Session, topic: &Topic) {
        let (watched, topic) = (self.clone(), topic.clone());
        db.unless_rolled_back(move || {
            if let Err(error) = watched.notify(&topic) {
                tracing::warn!(
                    topic = topic.as_str(), %error,
                    "a transaction was committed, or may have been, and its notification was not sent"
                );
            }
        });
    }

    /// Whether a process watches a topic, as far as this process knows.
    #[must_use]
    pub fn is_watched(&self, topic: &Topic) -> bool {
        self.inner.shared.lock().marks.is_watched(topic, Instant::now())
    }

    /// The state of the map at this moment.
    #[must_use]
    pub fn state(&self) -> WatchedState {
        let shared = &self.inner.shared;
        let now = Instant::now();
        let state = shared.lock();
        let (here, elsewhere) = state.marks.count(now);
        WatchedState {
            here,
            elsewhere,
            in_doubt: state.marks.is_in_doubt(now)
                || !shared.bus.is_listening()
                || self.inner.task.get().is_none(),
            gated: shared.gated.get(),
            recovered: shared.recovered.get(),
        }
    }
}

impl fmt::Debug for WatchedTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedTopics").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A [`Subscription`] to one topic that all processes know of. Dropping it withdraws the mark. If the last handle of the map is
/// dropped with it, the mark expires instead, since the task has ended.
pub struct Watch {
    subscription: Subscription,
    topic: Topic,
    watched: WatchedTopics,
}

impl Watch {
    /// The next delivery, or `None` once the bus is closed. Cancel safe.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.next().await
    }

    /// The watched topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }
}

impl Stream for Watch {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        Pin::new(&mut self.subscription).poll_next(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.subscription).finish()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let shared = &self.watched.inner.shared;
        let mut state = shared.lock();
        if state.marks.unwatch(&self.topic) {
            state.announcer.ended(&self.topic);
            shared.changed.notify_one();
        }
    }
}
