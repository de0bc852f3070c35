//! Notifications that are sent only if somebody, in any process, watches.
//!
//! # The form of an announcement
//!
//! What is watched travels on the bus itself, as payloads of a topic of its own:
//!
//! ```text
//! announcement = sign node "." number " " *topic
//! sign         = "+" / "-"        ; watches from now on, or no longer
//! node         = 16 hexadecimal digits, one process for as long as it lives
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

mod announcement;
mod marks;

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use db_core::Session;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::delivery::{Delivery, GapReason};
use crate::options::DAY;
use crate::state::Counter;
use crate::{Bus, NotifyError, Subscription, Topic};
use announcement::{Announcement, Node, announce};
use marks::{Marks, Spans, Verdict};

/// How marks are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    /// How often each process says again what it watches [30 s], from 10 ms to a day: what is outside counts as the nearest. A mark that was not renewed for three times as long expires; a
    /// process that has just started, or had a gap, notifies of everything for twice as long. All processes must agree.
    pub renewal: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { renewal: Duration::from_secs(30) }
    }
}

/// The watched-topic map: who watches what, in all processes, and a [`notify`](Self::notify) that is sent only if somebody
/// does. Cheap to clone; clones are the same map.
///
/// For topics that are notified of all the time and watched rarely, such as the events of a build: a NOTIFY wakes every
/// listening process, whether or not anybody there wants it.
///
/// ```no_run
/// # async fn run(bus: db_notify::Bus) -> Result<(), Box<dyn std::error::Error>> {
/// use db_notify::{Topic, WatchOptions, WatchedTopics};
///
/// let builds = WatchedTopics::new(&bus, &Topic::new("builds/watched")?, &WatchOptions::default());
/// let topic = Topic::new("builds/17")?;
///
/// // Where somebody watches. First watch, then look.
/// let mut watch = builds.watch(&topic, 1);
/// // Where it is written. First store, then notify.
/// let anybody = builds.notify(&topic)?;
/// watch.recv().await;
/// # Ok(())
/// # }
/// ```
///
/// # When in doubt, it notifies
///
/// * A process that has just started, or that had a [gap](crate::Gap), may not know of all who watch: it lets everything through
///   for two renewals. So it does while LISTEN is not in force.
/// * An announcement may cross a notification that is being dropped. What was dropped lately is remembered, and sent when the
///   announcement arrives; after a gap, all of it.
/// * A map whose task has ended, with the bus's runtime or by a panic, lets everything through.
/// * A mark holds for three renewals, so that a process that was killed is forgotten, and one that renews late is not.
/// * A process that could not say in time what it watches tells those who watch there by a gap, once it has said so.
///
/// The renewals are jittered. Time is tokio's, which a test can pause.
#[derive(Clone)]
pub struct WatchedTopics {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// None before it has begun. It holds `shared` but not `Inner`: dropping the last handle drops the set, which aborts it.
    task: OnceLock<JoinSet<()>>,
}

struct Shared {
    bus: Bus,
    announcements: Topic,
    renewal: Duration,
    node: Node,
    state: Mutex<State>,
    /// There is something to announce.
    changed: Notify,
    /// An announcement could not be read, and that was said.
    was_unreadable: AtomicBool,
    gated: Counter,
    brought_back: Counter,
}

struct State {
    marks: Marks,
    /// Topics that somebody here began to watch, or ceased to, since the last announcement.
    changes: HashSet<Topic>,
    /// When somebody first began to, since then.
    begun: Option<Instant>,
    /// The number of the last announcement.
    last: u64,
}

/// How a map stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchedState {
    /// Topics that are watched in this process.
    pub here: usize,
    /// Topics that are watched in other processes, as far as it is known here.
    pub elsewhere: usize,
    /// Whether everything is let through, because something may have been missed.
    pub in_doubt: bool,
    /// Notifications that were not sent, because nobody watched.
    pub gated: u64,
    /// Those among them that were sent after all, because an announcement crossed them or was perhaps missed.
    pub brought_back: u64,
}

/// How many topics are remembered whose notifications were dropped.
const REMEMBERED: usize = 100_000;

/// How many announcements may wait. Should there be more, the gap has everything let through.
const ANNOUNCEMENTS: usize = 10_000;

impl WatchedTopics {
    /// A map whose announcements go by the topic `announcements`. All processes that share it must agree on that topic, and on
    /// the options.
    ///
    /// A task announces, until the last handle and the last [`Watch`] are dropped, or the bus is closed. It runs where the bus's
    /// tasks run, wherever the map is made. On a bus that does not listen yet, such as a [lazy](Bus::lazy) one, it begins with the
    /// first use.
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
            // As long as the map could be wrong without this process having been told so.
            memory: renewal * 2 + bus.silence(),
            remembered: REMEMBERED,
        };
        let marks = Marks::new(spans, Instant::now());
        let shared = Arc::new(Shared {
            bus: bus.clone(),
            announcements: announcements.clone(),
            renewal,
            // Of the operating system: two processes of the same number would take each other's announcements for their own.
            node: getrandom::u64().expect("the operating system gives random numbers").max(1),
            state: Mutex::new(State { marks, changes: HashSet::new(), begun: None, last: 0 }),
            changed: Notify::new(),
            was_unreadable: AtomicBool::new(false),
            gated: Counter::default(),
            brought_back: Counter::default(),
        });
        let watched = Self { inner: Arc::new(Inner { shared, task: OnceLock::new() }) };
        if bus.listens() {
            watched.begin();
        }
        watched
    }

    /// Has the task run.
    fn begin(&self) -> &Shared {
        let Inner { shared, task } = &*self.inner;
        task.get_or_init(|| {
            let heard = shared.bus.subscribe(&shared.announcements, ANNOUNCEMENTS);
            // From here on, whoever announces is heard; who has announced before will renew it.
            shared.lock().marks.distrust(Instant::now());
            let mut task = JoinSet::new();
            let alive = Alive(Arc::clone(shared));
            // Where the bus's own run: with that runtime all subscriptions end.
            task.spawn_on(run(alive, heard), shared.bus.home());
            task
        });
        shared
    }

    /// Watches a topic: subscribes to it, in force when the call returns, and has all processes notify of it from now on. `size`
    /// is how many notifications may wait (at least 1).
    ///
    /// What is looked at after the call, and notified of afterwards, is not missed.
    #[must_use]
    pub fn watch(&self, topic: &Topic, size: usize) -> Watch {
        let shared = self.begin();
        let subscription = shared.bus.subscribe(topic, size);
        let mut state = shared.lock();
        if state.marks.watch(topic) {
            state.changes.insert(topic.clone());
            state.begun.get_or_insert_with(Instant::now);
            shared.changed.notify_one();
        }
        drop(state);
        Watch { subscription, topic: topic.clone(), watched: self.clone() }
    }

    /// Notifies of a topic if anybody watches it, or may; tells whether it does. Sent soon, as by [`Bus::notify_soon`].
    ///
    /// It carries nothing: who begins to watch a moment later is told of this one as well.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Closed`].
    pub fn notify(&self, topic: &Topic) -> Result<bool, NotifyError> {
        let shared = self.begin();
        // Nobody can be heard while it does not listen.
        if shared.bus.listens() && shared.lock().marks.decide(topic, Instant::now()) == Verdict::Drop {
            shared.gated.add(1);
            shared.bus.counters().gated.add(1);
            return Ok(false);
        }
        shared.bus.notify_soon(topic)?;
        Ok(true)
    }

    /// The same right after a transaction's commit, as [`NotifyAfterCommit`](crate::NotifyAfterCommit) does.
    pub fn notify_after(&self, db: &mut Session, topic: &Topic) {
        let (watched, topic) = (self.clone(), topic.clone());
        db.unless_rolled_back(move || {
            if let Err(error) = watched.notify(&topic) {
                tracing::warn!(topic = topic.as_str(), %error, "committed, or perhaps, and nobody is notified");
            }
        });
    }

    /// Whether anybody watches a topic, as far as it is known here.
    #[must_use]
    pub fn is_watched(&self, topic: &Topic) -> bool {
        self.inner.shared.lock().marks.is_watched(topic, Instant::now())
    }

    /// How the map stands now.
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
                || !shared.bus.listens()
                || self.inner.task.get().is_none(),
            gated: shared.gated.get(),
            brought_back: shared.brought_back.get(),
        }
    }
}

impl fmt::Debug for WatchedTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedTopics").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in the critical sections can leave the map half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has changed here, as others are told, and since when somebody waits for that.
    fn changes(&self) -> (Vec<String>, Instant) {
        let mut state = self.lock();
        let since = state.begun.take().unwrap_or_else(Instant::now);
        let changes = std::mem::take(&mut state.changes);
        let (begun, ended): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|topic| state.marks.watches(topic));
        let mut announcements = self.announce(&mut state, true, begun);
        announcements.extend(self.announce(&mut state, false, ended));
        (announcements, since)
    }

    /// All that is watched here.
    fn all(&self) -> Vec<String> {
        let mut state = self.lock();
        let own: Vec<Topic> = state.marks.own().cloned().collect();
        self.announce(&mut state, true, own)
    }

    fn announce(&self, state: &mut State, watches: bool, topics: Vec<Topic>) -> Vec<String> {
        announce(&self.announcements, self.node, watches, topics, || {
            state.last += 1;
            state.last
        })
    }

    /// Tells the others; what is returned ends when that was done. None when there is nothing to tell.
    fn say(&self, announcements: &[String]) -> Option<oneshot::Receiver<()>> {
        // They are sent in their order, so the last one tells of all.
        let (last, rest) = announcements.split_last()?;
        let (sent, done) = oneshot::channel();
        let said = rest
            .iter()
            .try_for_each(|announcement| self.bus.notify_soon_with(&self.announcements, announcement))
            .and_then(|()| self.bus.notify_then(&self.announcements, last, sent));
        if let Err(error) = said {
            tracing::debug!(%error, "not announced");
        }
        Some(done)
    }

    /// Others may have notified in vain of what is watched here.
    fn tell_of_silence(&self) {
        let own: Vec<Topic> = self.lock().marks.own().cloned().collect();
        tracing::debug!(topics = own.len(), "what is watched here was announced late");
        self.bus.gap_of(&own, GapReason::Unannounced);
    }

    fn bring_back(&self, topics: &[Topic]) {
        self.brought_back.add(topics.len());
        for topic in topics {
            if let Err(error) = self.bus.notify_soon(topic) {
                tracing::debug!(%error, "not notified");
            }
        }
    }
}

/// Held by the task. Without a task nobody is heard: then everything is let through.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.lock().marks.distrust_for_ever();
        if std::thread::panicking() {
            distrust(&self.0);
            self.0.tell_of_silence();
        }
    }
}

/// An announcement that was sent.
struct Sent {
    /// Since when what it says was not said.
    since: Instant,
    /// If it says again all that is watched here: when it was written.
    renewed: Option<Instant>,
}

impl Sent {
    async fn when(self, done: oneshot::Receiver<()>) -> Option<Self> {
        // Given up by a bus that closes.
        done.await.ok().map(|()| self)
    }
}

/// Announces and hears announcements until the bus is closed.
async fn run(alive: Alive, mut heard: Subscription) {
    let shared = &alive.0;
    let mut under_way = FuturesUnordered::new();
    // When what was sent last of all that is watched here was written. One at a time: while the server is away, there is no use in
    // more.
    let mut renewed = Instant::now();
    let mut is_renewing = false;
    let mut is_announcing = false;
    // When those who watch here were told to look.
    let mut told = renewed;
    loop {
        // Sooner rather than later, so that two fit into the time of doubt; spread, so that not all processes speak at once.
        let pause = sleep(shared.renewal.mul_f64(fastrand::f64().mul_add(0.2, 0.7)));
        let mut pause = std::pin::pin!(pause);
        loop {
            tokio::select! {
                delivery = heard.recv() => match delivery {
                    None => return,
                    Some(Delivery::Notification(notification)) => hear(shared, notification.payload()),
                    Some(Delivery::Gap(gap)) => {
                        distrust(shared);
                        // Our marks may have expired meanwhile. Not so when somebody could not say something: were that one of
                        // our own announcements, there would be no end to it.
                        if !matches!(gap.reason, GapReason::Overflow | GapReason::Unreadable) {
                            break;
                        }
                    }
                },
                // What changes while that is under way is said together.
                () = shared.changed.notified(), if !is_announcing => {
                    let (announcements, since) = shared.changes();
                    if let Some(done) = shared.say(&announcements) {
                        under_way.push(Sent { since, renewed: None }.when(done));
                        is_announcing = true;
                    }
                }
                Some(Some(sent)) = under_way.next() => {
                    // A mark is good for three renewals, and what is dropped is remembered for more than two. Whatever was
                    // dropped before that is forgotten.
                    if sent.since.max(told).elapsed() > shared.renewal * 2 {
                        shared.tell_of_silence();
                        told = Instant::now();
                    }
                    match sent.renewed {
                        Some(written) => (renewed, is_renewing) = (written, false),
                        None => is_announcing = false,
                    }
                }
                () = &mut pause => break,
            }
        }
        let now = Instant::now();
        // What was dropped while nothing could be heard is kept until it can be.
        if shared.bus.listens() {
            shared.lock().marks.expire(now);
        }
        if is_renewing {
            continue;
        }
        match shared.say(&shared.all()) {
            Some(done) => {
                let sent = Sent { since: renewed, renewed: Some(now) };
                under_way.push(sent.when(done));
                is_renewing = true;
            }
            None => renewed = now,
        }
    }
}

fn hear(shared: &Shared, text: &str) {
    match Announcement::decode(text) {
        Some(announcement) if announcement.node == shared.node => {}
        Some(announcement) => {
            let crossed = shared.lock().marks.announced(announcement, Instant::now());
            shared.bring_back(&crossed);
        }
        None => {
            if !shared.was_unreadable.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    bytes = text.len(),
                    "an announcement of a form that is not known here: nothing is dropped for lack of a watcher"
                );
            }
            distrust(shared);
        }
    }
}

fn distrust(shared: &Shared) {
    let dropped = shared.lock().marks.distrust(Instant::now());
    shared.bring_back(&dropped);
}

/// A [`Subscription`] to one topic that all processes know of. Dropping it withdraws the mark; with the map's last handle nobody is
/// left to say so, and the mark expires.
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

    /// The topic that is watched.
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
            state.changes.insert(self.topic.clone());
            shared.changed.notify_one();
        }
    }
}
