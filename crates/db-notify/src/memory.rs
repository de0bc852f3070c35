//! The link without a database.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::pending;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use db_core::ConnectFailure;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Channel;
use crate::link::{Link, Listener, RawNotification, Sender};
use crate::wire;

/// A place where notifications are exchanged within this process, for tests of what uses a bus. Cheap to clone; clones are the
/// same place.
///
/// It keeps what PostgreSQL keeps, and one conformance suite runs on both. It loses what PostgreSQL may lose, too, but when the
/// test says so: [`cut`](Self::cut) and its like, [`black_hole`](Self::black_hole), [`stop`](Self::stop). With tokio's time paused
/// (`tokio::time::pause`), heartbeats, pauses and the pace take no time at all.
///
/// What it proves nothing about is what other processes do, and what a server does under load.
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
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<u64, Session>,
    /// The number of the last session.
    last: u64,
    stopped: bool,
    usage: f64,
    /// What happens to the session that notifies next.
    cut: Option<Cut>,
}

/// When a session that notifies is ended.
#[derive(Clone, Copy)]
enum Cut {
    Before,
    InPlaceOfTheAnswer,
}

struct Session {
    listening: Option<Listening>,
    /// Its peer is gone, and nobody told it.
    is_silent: bool,
}

struct Listening {
    channels: HashSet<Channel>,
    inbox: UnboundedSender<RawNotification>,
}

impl MemoryLink {
    /// A place of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all sessions, as `pg_terminate_backend` does. New ones can be opened at once. What is in a
    /// [black hole](Self::black_hole) does not hear of it.
    pub fn cut(&self) {
        self.lock().end();
    }

    /// Ends the session that notifies next, before it has. Once.
    pub fn cut_before_notify(&self) {
        self.lock().cut = Some(Cut::Before);
    }

    /// Ends the session that notifies next, in place of the answer: it was done, and the session cannot know. Once.
    pub fn cut_answer_to_notify(&self) {
        self.lock().cut = Some(Cut::InPlaceOfTheAnswer);
    }

    /// Has all sessions of this moment hear and answer nothing for ever, without being told. New ones are well.
    pub fn black_hole(&self) {
        for session in self.lock().sessions.values_mut() {
            session.is_silent = true;
        }
    }

    /// [Ends](Self::cut) all sessions and lets in no new ones, as a server that is stopped, until [`start`](Self::start).
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.end();
    }

    /// Lets sessions in again.
    pub fn start(&self) {
        self.lock().stopped = false;
    }

    /// How full the queue is said to be, from 0 to 1. Nothing else changes by it.
    pub fn set_queue_usage(&self, usage: f64) {
        self.lock().usage = usage;
    }

    /// Sessions that are open now, listening and sending ones, those in a black hole included.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.lock().sessions.len()
    }

    fn open(&self, listening: Option<Listening>) -> Result<Seat, sqlx::Error> {
        let mut state = self.lock();
        if state.stopped {
            return Err(sqlx::Error::Io(ErrorKind::ConnectionRefused.into()));
        }
        state.last += 1;
        let number = state.last;
        state.sessions.insert(number, Session { listening, is_silent: false });
        drop(state);
        Ok(Seat { memory: self.clone(), number })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in the critical sections can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends those that can be told.
    fn end(&mut self) {
        self.sessions.retain(|_, session| session.is_silent);
    }
}

impl fmt::Display for MemoryLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this process's memory")
    }
}

/// Not what waits to be received: payloads are the program's.
impl fmt::Debug for MemoryLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLink").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

impl Link for MemoryLink {
    type Listener = MemoryListener;
    type Sender = MemorySender;

    async fn listener(&self) -> Result<MemoryListener, sqlx::Error> {
        let (inbox, arriving) = unbounded_channel();
        let seat = self.open(Some(Listening { channels: HashSet::new(), inbox }))?;
        Ok(MemoryListener { seat, arriving })
    }

    async fn sender(&self) -> Result<MemorySender, sqlx::Error> {
        Ok(MemorySender { seat: self.open(None)? })
    }

    fn explain(&self, error: &sqlx::Error) -> ConnectFailure {
        ConnectFailure::NotReached(error.to_string())
    }
}

/// One session's place, left when dropped.
struct Seat {
    memory: MemoryLink,
    number: u64,
}

impl Seat {
    /// Does something at the other end: an error when the session was ended, and no answer at all when it is silent.
    async fn ask<T>(&self, what: impl FnOnce(&mut State) -> T) -> Result<T, sqlx::Error> {
        {
            let mut state = self.memory.lock();
            match state.sessions.get(&self.number) {
                None => return Err(sqlx::Error::Io(ErrorKind::ConnectionReset.into())),
                Some(Session { is_silent: false, .. }) => return Ok(what(&mut state)),
                Some(_) => {}
            }
        }
        pending().await
    }

    async fn channels(&self, change: impl FnOnce(&mut HashSet<Channel>)) -> Result<(), sqlx::Error> {
        self.ask(|state| {
            let session = state.sessions.get_mut(&self.number);
            if let Some(listening) = session.and_then(|session| session.listening.as_mut()) {
                change(&mut listening.channels);
            }
        })
        .await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.memory.lock().sessions.remove(&self.number);
    }
}

/// A session of [`MemoryLink`] that listens.
pub struct MemoryListener {
    seat: Seat,
    arriving: UnboundedReceiver<RawNotification>,
}

impl Listener for MemoryListener {
    async fn listen(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.seat.channels(|listened| listened.extend(channels.iter().cloned())).await
    }

    async fn unlisten(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.seat.channels(|listened| listened.retain(|channel| !channels.contains(channel))).await
    }

    async fn recv(&mut self) -> Result<RawNotification, sqlx::Error> {
        self.arriving.recv().await.ok_or_else(|| sqlx::Error::Io(ErrorKind::UnexpectedEof.into()))
    }

    async fn ping(&mut self) -> Result<f64, sqlx::Error> {
        self.seat.ask(|state| state.usage).await
    }

    async fn close(self) {}
}

/// A session of [`MemoryLink`] that sends.
pub struct MemorySender {
    seat: Seat,
}

impl Sender for MemorySender {
    async fn notify(&mut self, channel: &Channel, payloads: &[String]) -> Result<(), sqlx::Error> {
        self.seat
            .ask(|state| {
                if let Some(bad) =
                    payloads.iter().find(|payload| payload.len() > wire::LIMIT || payload.contains('\0'))
                {
                    let bytes = bad.len();
                    return Err(sqlx::Error::Protocol(format!("a payload of {bytes} bytes cannot be sent")));
                }
                let cut = state.cut.take();
                if cut.is_some() {
                    state.sessions.remove(&self.seat.number);
                }
                let answer = cut.map_or(Ok(()), |_| Err(sqlx::Error::Io(ErrorKind::ConnectionReset.into())));
                if matches!(cut, Some(Cut::Before)) {
                    return answer;
                }
                let mut seen = HashSet::new();
                for payload in payloads.iter().filter(|payload| seen.insert(*payload)) {
                    let arrived = RawNotification::new(channel.clone(), payload.as_str());
                    for session in state.sessions.values().filter(|session| !session.is_silent) {
                        if let Some(Listening { channels, inbox }) = &session.listening
                            && channels.contains(channel)
                        {
                            // One that is just being dropped is not there any more.
                            let _: Result<(), _> = inbox.send(arrived.clone());
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
        f.debug_struct("MemoryListener").field("number", &self.seat.number).finish_non_exhaustive()
    }
}

impl fmt::Debug for MemorySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySender").field("number", &self.seat.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bus, BusOptions, Delivery, Topic, Trouble};

    fn channels(memory: &MemoryLink) -> HashSet<Channel> {
        let state = memory.lock();
        let listening = state.sessions.values().filter_map(|session| session.listening.as_ref());
        listening.flat_map(|listening| listening.channels.iter().cloned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn it_hears_that_nobody_listens_to_a_channel_any_more() {
        let memory = MemoryLink::new();
        let bus = Bus::with_link(memory.clone(), BusOptions::default()).await.expect("a bus");
        let own = Channel::new("db_notify.default").expect("a channel");
        let jobs = Channel::new("jobs").expect("a channel");
        let mut raw = bus.listen(&jobs, 1);
        assert!(matches!(raw.recv().await, Some(Delivery::Gap(_))));
        assert_eq!(channels(&memory), [own.clone(), jobs].into());

        drop(raw);

        db_testkit::until("only its own is left", async || channels(&memory) == [own.clone()].into()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_half_full_is_trouble_until_it_has_room_again() {
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
    async fn nothing_that_is_sent_is_shown() {
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
