//! The link within the memory of the process.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::pending;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use db_core::ConnectFailure;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Link, Listener, RawNotification, Sender};
use crate::{Channel, wire};

/// A link within this process, for tests of programs that use a bus. Cheap to clone; clones are the same place.
///
/// It keeps the promises that PostgreSQL keeps: one conformance suite checks both. A test decides what is lost, with
/// [`cut`](Self::cut), [`cut_before_notify`](Self::cut_before_notify), [`cut_answer_to_notify`](Self::cut_answer_to_notify),
/// [`black_hole`](Self::black_hole) and [`stop`](Self::stop). While tokio's time is paused (`tokio::time::pause`), heartbeats, pauses
/// and the pace take no time.
///
/// It does not show how several processes behave, or a server under load.
///
/// ```
/// use db_notify::{Bus, BusOptions, Delivery, GapReason, MemoryLink, Topic};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = MemoryLink::new();
/// let bus = Bus::with_link(memory.clone(), BusOptions::default()).await?;
/// let topic = Topic::new("orders/17")?;
/// let mut orders = bus.subscribe(&topic, 16);
///
/// bus.notify(&topic).await?;
/// assert!(matches!(orders.recv().await, Some(Delivery::Notification(_))));
///
/// memory.cut();
/// let Some(Delivery::Gap(gap)) = orders.recv().await else { panic!("no gap") };
/// assert_eq!(gap.reason, GapReason::Reconnected);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryLink {
    state: Arc<Mutex<MemoryState>>,
}

#[derive(Default)]
struct MemoryState {
    sessions: HashMap<u64, Session>,
    /// The number of the last session.
    last: u64,
    stopped: bool,
    usage: f64,
    /// How the session that notifies next is ended.
    cut: Option<Cut>,
}

/// When a session that notifies is ended.
#[derive(Clone, Copy)]
enum Cut {
    Before,
    InsteadOfAnswer,
}

struct Session {
    inbox: Option<Inbox>,
    /// The session is in a black hole.
    is_silent: bool,
}

/// The receiving side of a session that listens.
struct Inbox {
    channels: HashSet<Channel>,
    notifications: UnboundedSender<RawNotification>,
}

impl MemoryLink {
    /// Makes a new place.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all sessions, as `pg_terminate_backend` does. New ones can be opened at once. A session in a
    /// [black hole](Self::black_hole) does not notice.
    pub fn cut(&self) {
        self.lock().end();
    }

    /// Ends the session that notifies next, before the notification is sent. Works once.
    pub fn cut_before_notify(&self) {
        self.lock().cut = Some(Cut::Before);
    }

    /// Ends the session that notifies next, after the notification was sent and instead of the answer. Works once.
    pub fn cut_answer_to_notify(&self) {
        self.lock().cut = Some(Cut::InsteadOfAnswer);
    }

    /// Cuts all present sessions off without an error: from now on they receive and answer nothing. New sessions work.
    pub fn black_hole(&self) {
        for session in self.lock().sessions.values_mut() {
            session.is_silent = true;
        }
    }

    /// [Ends](Self::cut) all sessions, and refuses new ones until [`start`](Self::start), as a stopped server does.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.end();
    }

    /// Accepts new sessions again.
    pub fn start(&self) {
        self.lock().stopped = false;
    }

    /// Sets the queue usage that pings return, from 0 to 1. It has no other effect.
    pub fn set_queue_usage(&self, usage: f64) {
        self.lock().usage = usage;
    }

    /// The number of open sessions, both listening and sending, including those in a black hole.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.lock().sessions.len()
    }

    fn open(&self, inbox: Option<Inbox>) -> Result<OpenSession, sqlx::Error> {
        let mut state = self.lock();
        if state.stopped {
            return Err(sqlx::Error::Io(ErrorKind::ConnectionRefused.into()));
        }
        state.last += 1;
        let number = state.last;
        state.sessions.insert(number, Session { inbox, is_silent: false });
        drop(state);
        Ok(OpenSession { memory: self.clone(), number })
    }

    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        // No critical section can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryState {
    /// Ends all sessions that are not in a black hole.
    fn end(&mut self) {
        self.sessions.retain(|_, session| session.is_silent);
    }
}

impl fmt::Display for MemoryLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory of this process")
    }
}

/// Shows no payload: payloads are data of the program.
impl fmt::Debug for MemoryLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLink").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

impl Link for MemoryLink {
    type Listener = MemoryListener;
    type Sender = MemorySender;

    async fn listener(&self) -> Result<MemoryListener, sqlx::Error> {
        let (notifications, received) = unbounded_channel();
        let session = self.open(Some(Inbox { channels: HashSet::new(), notifications }))?;
        Ok(MemoryListener { session, received })
    }

    async fn sender(&self) -> Result<MemorySender, sqlx::Error> {
        Ok(MemorySender { session: self.open(None)? })
    }

    fn explain(&self, error: &sqlx::Error) -> ConnectFailure {
        ConnectFailure::NotReached(error.to_string())
    }
}

/// A session's entry in the state. Dropping it removes the entry.
struct OpenSession {
    memory: MemoryLink,
    number: u64,
}

impl OpenSession {
    /// Runs a request at the other end. An ended session gets an error, and a session in a black hole no answer.
    async fn request<T>(&self, run: impl FnOnce(&mut MemoryState) -> T) -> Result<T, sqlx::Error> {
        {
            let mut state = self.memory.lock();
            match state.sessions.get(&self.number) {
                None => return Err(sqlx::Error::Io(ErrorKind::ConnectionReset.into())),
                Some(Session { is_silent: false, .. }) => return Ok(run(&mut state)),
                Some(_) => {}
            }
        }
        pending().await
    }

    async fn channels(&self, change: impl FnOnce(&mut HashSet<Channel>)) -> Result<(), sqlx::Error> {
        self.request(|state| {
            let session = state.sessions.get_mut(&self.number);
            if let Some(inbox) = session.and_then(|session| session.inbox.as_mut()) {
                change(&mut inbox.channels);
            }
        })
        .await
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.memory.lock().sessions.remove(&self.number);
    }
}

/// A session of [`MemoryLink`] that listens.
pub struct MemoryListener {
    session: OpenSession,
    received: UnboundedReceiver<RawNotification>,
}

impl Listener for MemoryListener {
    async fn listen(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.session.channels(|listened| listened.extend(channels.iter().cloned())).await
    }

    async fn unlisten(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.session.channels(|listened| listened.retain(|channel| !channels.contains(channel))).await
    }

    async fn recv(&mut self) -> Result<RawNotification, sqlx::Error> {
        self.received.recv().await.ok_or_else(|| sqlx::Error::Io(ErrorKind::UnexpectedEof.into()))
    }

    async fn ping(&mut self) -> Result<f64, sqlx::Error> {
        self.session.request(|state| state.usage).await
    }

    async fn close(self) {}
}

/// A session of [`MemoryLink`] that sends.
pub struct MemorySender {
    session: OpenSession,
}

impl Sender for MemorySender {
    async fn notify(&mut self, channel: &Channel, payloads: &[String]) -> Result<(), sqlx::Error> {
        self.session
            .request(|state| {
                if let Some(bad) =
                    payloads.iter().find(|payload| payload.len() > wire::LIMIT || payload.contains('\0'))
                {
                    let bytes = bad.len();
                    return Err(sqlx::Error::Protocol(format!(
                        "a payload of {bytes} bytes is too long or contains a NUL"
                    )));
                }
                let cut = state.cut.take();
                if cut.is_some() {
                    state.sessions.remove(&self.session.number);
                }
                let answer = cut.map_or(Ok(()), |_| Err(sqlx::Error::Io(ErrorKind::ConnectionReset.into())));
                if matches!(cut, Some(Cut::Before)) {
                    return answer;
                }
                let mut seen = HashSet::new();
                for payload in payloads.iter().filter(|payload| seen.insert(*payload)) {
                    let notification = RawNotification::new(channel.clone(), payload.as_str());
                    for session in state.sessions.values().filter(|session| !session.is_silent) {
                        if let Some(Inbox { channels, notifications }) = &session.inbox
                            && channels.contains(channel)
                        {
                            // The session may be dropped at this moment.
                            let _: Result<(), _> = notifications.send(notification.clone());
                        }
                    }
                }
                answer
            })
            .await?
    }

    async fn close(self) {}
}

impl fmt::Debug for MemoryListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryListener").field("number", &self.session.number).finish_non_exhaustive()
    }
}

impl fmt::Debug for MemorySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySender").field("number", &self.session.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bus, BusOptions, Delivery, Topic, Trouble};

    fn channels(memory: &MemoryLink) -> HashSet<Channel> {
        let state = memory.lock();
        let inboxes = state.sessions.values().filter_map(|session| session.inbox.as_ref());
        inboxes.flat_map(|inbox| inbox.channels.iter().cloned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_bus_unlistens_from_a_channel_without_subscribers() {
        let memory = MemoryLink::new();
        let bus = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");
        let own = Channel::new("db_notify.default").expect("a channel");
        let jobs = Channel::new("jobs").expect("a channel");
        let mut raw = bus.listen(&jobs, 1);
        assert!(matches!(raw.recv().await, Some(Delivery::Gap(_))));
        assert_eq!(channels(&memory), [own.clone(), jobs].into());

        drop(raw);

        db_testkit::until("only the bus's own channel is left", async || {
            channels(&memory) == [own.clone()].into()
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_full_queue_is_trouble_until_it_has_room_again() {
        let memory = MemoryLink::new();
        let bus = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");

        for (usage, trouble) in
            [(0.49, None), (0.5, Some(Trouble::QueueFull)), (1.0, Some(Trouble::QueueFull)), (0.0, None)]
        {
            memory.set_queue_usage(usage);
            db_testkit::until("a heartbeat", async || bus.state().queue_usage == Some(usage)).await;
            assert_eq!(bus.state().trouble, trouble, "{usage}");
            assert!(bus.state().is_connected());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_payload_is_shown() {
        let memory = MemoryLink::new();
        let bus = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");
        let topic = Topic::new("t").expect("a topic");
        let subscription = bus.subscribe(&topic, 1);
        bus.notify_with(&topic, "the payload").await.expect("sent");
        let mut listener = memory.listener().await.expect("a session");
        let mut sender = memory.sender().await.expect("a session");
        let channel = Channel::new("c").expect("a channel");
        listener.listen(std::slice::from_ref(&channel)).await.expect("listens");
        sender.notify(&channel, &["the payload".to_owned()]).await.expect("sent");

        let shown = format!("{memory:?} {bus:?} {subscription:?} {listener:?} {sender:?}");

        assert!(!shown.contains("the payload"), "{shown}");
        assert!(shown.contains("sessions: 4"), "{shown}");
        let arrived = listener.recv().await.expect("a notification");
        assert_eq!(arrived.payload(), "the payload");
        assert_eq!(format!("{arrived:?}"), "RawNotification { channel: \"c\", bytes: 11 }");
    }
}
