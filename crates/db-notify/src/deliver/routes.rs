//! From topics and channels to the subscriptions of this process.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::notification::{GapReason, Notification, NotificationSource};
use super::queue::Queue;
use crate::state::Counters;
use crate::{Channel, Topic};

/// The map from topics, and from channels of other programs, to the queues of subscriptions. It has a lock, held for the time of a
/// look-up: a subscription to a topic is in force when the call returns, without a task to wait for.
///
/// The routes say which channels are wanted; the listening task LISTENs to them.
pub(crate) struct Routes {
    state: Mutex<RoutesState>,
    counters: Arc<Counters>,
    /// Notified of each new subscription: a lazy bus connects at the first one.
    subscribed: Notify,
    /// Notified of each change of the wanted channels.
    changed: Notify,
}

#[derive(Default)]
struct RoutesState {
    /// The queues of all subscriptions, also of those without a topic or channel.
    queues: HashMap<QueueId, Arc<Queue>>,
    topics: HashMap<Topic, Subscribers, RandomState>,
    channels: HashMap<Channel, ChannelRoute>,
    last: QueueId,
    closed: bool,
}

/// Queues are numbered in the order in which they were made.
pub(super) type QueueId = u64;

/// Sorted by their numbers. Most topics have one subscriber, which is stored in the map itself: that saves a cache miss for each
/// notification.
type Subscribers = SmallVec<[(QueueId, Arc<Queue>); 1]>;

/// The subscribers of a channel.
#[derive(Default)]
struct ChannelRoute {
    active: Subscribers,
    /// Subscribers that wait for LISTEN to be in force.
    pending: Subscribers,
}

/// The sizes of the maps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) topics: usize,
    pub(crate) channels: usize,
    pub(crate) subscribers: usize,
}

impl Routes {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { state: Mutex::default(), counters, subscribed: Notify::new(), changed: Notify::new() }
    }

    /// Adds a queue without a topic or channel.
    pub(super) fn open(&self, size: usize) -> (QueueId, Arc<Queue>) {
        let queue = Arc::new(Queue::new(size, Arc::clone(&self.counters)));
        let mut state = self.lock();
        if state.closed {
            // There is no waker yet.
            drop(queue.close());
        }
        state.last += 1;
        let id = state.last;
        state.queues.insert(id, Arc::clone(&queue));
        drop(state);
        self.subscribed.notify_one();
        (id, queue)
    }

    /// Removes a queue. `topics` and `channels` are all that it is subscribed to.
    pub(super) fn remove(
        &self,
        id: QueueId,
        topics: impl IntoIterator<Item = Topic>,
        channels: impl IntoIterator<Item = Channel>,
    ) {
        let mut state = self.lock();
        let RoutesState { queues, topics: topic_routes, channels: channel_routes, .. } = &mut *state;
        for topic in topics {
            remove_from(topic_routes, &topic, |subscribers| remove(subscribers, id));
        }
        let mut any_channel = false;
        for channel in channels {
            remove_from(channel_routes, &channel, |route| route.remove(id));
            any_channel = true;
        }
        // Dropping a long queue takes time, so the lock is released before.
        let queue = queues.remove(&id);
        drop(state);
        drop(queue);
        if any_channel {
            self.changed.notify_one();
        }
    }

    /// Subscribes a queue to a topic.
    pub(super) fn subscribe(&self, id: QueueId, topic: &Topic) {
        let mut state = self.lock();
        let RoutesState { queues, topics, .. } = &mut *state;
        if let Some(queue) = queues.get(&id) {
            add(topics.entry(topic.clone()).or_default(), id, queue);
        }
    }

    pub(super) fn unsubscribe(&self, id: QueueId, topic: &Topic) {
        remove_from(&mut self.lock().topics, topic, |subscribers| remove(subscribers, id));
    }

    /// Subscribes a queue to a channel. The queue receives a gap when LISTEN is in force.
    pub(super) fn listen(&self, id: QueueId, channel: &Channel) {
        let mut state = self.lock();
        let RoutesState { queues, channels, .. } = &mut *state;
        if let Some(queue) = queues.get(&id) {
            add(&mut channels.entry(channel.clone()).or_default().pending, id, queue);
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn unlisten(&self, id: QueueId, channel: &Channel) {
        remove_from(&mut self.lock().channels, channel, |route| route.remove(id));
        self.changed.notify_one();
    }

    /// Waits for a subscription. Cancel safe.
    pub(crate) async fn subscribed(&self) {
        self.subscribed.notified().await;
    }

    /// Waits for a change of the wanted channels. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The wanted channels.
    pub(crate) fn channels(&self) -> HashSet<Channel> {
        self.lock().channels.keys().cloned().collect()
    }

    /// LISTEN is in force for these channels: their pending subscribers become active, and receive a gap.
    pub(crate) fn start(&self, channels: &HashSet<Channel>) {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        for (_, route) in state.channels.iter_mut().filter(|(channel, _)| channels.contains(*channel)) {
            for (id, queue) in route.pending.drain(..) {
                wakers.0.extend(queue.gap(GapReason::Started));
                add(&mut route.active, id, &queue);
            }
        }
    }

    /// Delivers notifications of topics, each with its payload.
    pub(crate) fn deliver<'e>(&self, entries: impl Iterator<Item = (&'e str, &'e str)>) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        for (topic, payload) in entries {
            if let Some((topic, subscribers)) = state.topics.get_key_value(topic) {
                push(subscribers, || NotificationSource::Topic(topic.clone()), payload, &mut wakers);
            }
        }
    }

    /// Delivers a notification of a channel.
    pub(crate) fn deliver_raw(&self, channel: &str, payload: &str) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        if let Some((channel, route)) = state.channels.get_key_value(channel) {
            push(&route.active, || NotificationSource::Channel(channel.clone()), payload, &mut wakers);
        }
    }

    /// Puts a gap into each queue.
    pub(crate) fn gap(&self, reason: GapReason) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        wakers.0.extend(state.queues.values().filter_map(|queue| queue.gap(reason)));
    }

    /// Puts a gap into the queue of each subscriber of these topics.
    pub(crate) fn gap_for(&self, topics: &[Topic], reason: GapReason) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        let subscribers = topics.iter().filter_map(|topic| state.topics.get(topic)).flatten();
        wakers.0.extend(subscribers.filter_map(|(_, queue)| queue.gap(reason)));
    }

    /// Ends all subscriptions, present and future, after they have delivered what they hold.
    pub(crate) fn close(&self) {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        state.closed = true;
        wakers.0.extend(state.queues.values().filter_map(|queue| queue.close()));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn count(&self) -> Counts {
        let state = self.lock();
        Counts { topics: state.topics.len(), channels: state.channels.len(), subscribers: state.queues.len() }
    }

    fn lock(&self) -> MutexGuard<'_, RoutesState> {
        // No critical section can leave the maps half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChannelRoute {
    /// Returns whether no subscriber is left.
    fn remove(&mut self, id: QueueId) -> bool {
        let none_active = remove(&mut self.active, id);
        let none_pending = remove(&mut self.pending, id);
        none_active && none_pending
    }
}

/// Wakes the tasks of subscribers when it is dropped. Declared before the lock is taken, so that it is dropped after the release: a
/// woken task may run at once, and take the lock.
#[derive(Default)]
struct Wakers(Vec<Waker>);

impl Drop for Wakers {
    fn drop(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}

fn push(
    subscribers: &Subscribers,
    source: impl Fn() -> NotificationSource,
    payload: &str,
    wakers: &mut Wakers,
) {
    // One copy for all subscribers. Most notifications have no payload.
    let payload: Option<Arc<str>> = (!payload.is_empty()).then(|| payload.into());
    for (_, queue) in subscribers {
        wakers.0.extend(queue.push(Notification { source: source(), payload: payload.clone() }));
    }
}

fn add(subscribers: &mut Subscribers, id: QueueId, queue: &Arc<Queue>) {
    if let Err(place) = subscribers.binary_search_by_key(&id, |(id, _)| *id) {
        subscribers.insert(place, (id, Arc::clone(queue)));
    }
}

/// Returns whether no subscriber is left.
fn remove(subscribers: &mut Subscribers, id: QueueId) -> bool {
    if let Ok(place) = subscribers.binary_search_by_key(&id, |(id, _)| *id) {
        subscribers.remove(place);
    }
    subscribers.is_empty()
}

/// Removes a subscriber from a route, and the route if no subscriber is left.
fn remove_from<K: Eq + Hash, V, S: BuildHasher>(
    map: &mut HashMap<K, V, S>,
    key: &K,
    remove: impl FnOnce(&mut V) -> bool,
) {
    if let Some(route) = map.get_mut(key)
        && remove(route)
    {
        map.remove(key);
    }
}
