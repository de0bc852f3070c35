//! Who wants to hear of what, in this process.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::Channel;
use crate::Topic;
use crate::delivery::{GapReason, Notification, NotificationSource};
use crate::queue::Queue;
use crate::state::Counters;

/// The map from topics, and from channels of other programs', to subscribers' queues. A lock, held for the time of a look-up:
/// subscribing to a topic is then in force when the call returns, and nobody has to wait for a task.
///
/// It says what is wanted; the listening task makes it so.
pub(crate) struct Routes {
    state: Mutex<State>,
    counters: Arc<Counters>,
    /// Told of each subscription: a lazy bus begins to listen at the first one.
    subscribed: Notify,
    /// Told of each change of the channels.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// All of them, also those that follow nothing now.
    queues: HashMap<Number, Arc<Queue>>,
    topics: HashMap<Topic, Followers, RandomState>,
    channels: HashMap<Channel, Wanted>,
    /// The number of the last queue.
    last: Number,
    closed: bool,
}

/// Of a queue.
pub(crate) type Number = u64;

/// In the order of their numbers, which only grow. Beside the topic, so that the way to the one follower that most topics have
/// misses the processor's caches once less.
type Followers = SmallVec<[(Number, Arc<Queue>); 1]>;

/// Who listens to a channel.
#[derive(Default)]
struct Wanted {
    followers: Followers,
    /// LISTEN may not be in force yet.
    waiting: Followers,
}

/// How many there are.
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

    /// A queue that follows nothing yet.
    pub(crate) fn open(&self, size: usize) -> (Number, Arc<Queue>) {
        let queue = Arc::new(Queue::new(size, Arc::clone(&self.counters)));
        let mut state = self.lock();
        if state.closed {
            // Nobody waits for it yet.
            drop(queue.close());
        }
        state.last += 1;
        let number = state.last;
        state.queues.insert(number, Arc::clone(&queue));
        drop(state);
        self.subscribed.notify_one();
        (number, queue)
    }

    /// Forgets a queue, and all that it follows.
    pub(crate) fn leave(
        &self,
        number: Number,
        topics: impl IntoIterator<Item = Topic>,
        channels: impl IntoIterator<Item = Channel>,
    ) {
        let mut state = self.lock();
        let State { queues, topics: followed, channels: wanted, .. } = &mut *state;
        for topic in topics {
            forget(followed, &topic, |followers| remove(followers, number));
        }
        let mut any = false;
        for channel in channels {
            forget(wanted, &channel, |wanted| wanted.remove(number));
            any = true;
        }
        // Its last owner may be the subscription that is being dropped; what it holds may take its time.
        let queue = queues.remove(&number);
        drop(state);
        drop(queue);
        if any {
            self.changed.notify_one();
        }
    }

    /// Has a queue follow a topic, too.
    pub(crate) fn follow(&self, number: Number, topic: &Topic) {
        let mut state = self.lock();
        let State { queues, topics, .. } = &mut *state;
        if let Some(queue) = queues.get(&number) {
            add(topics.entry(topic.clone()).or_default(), number, queue);
        }
    }

    pub(crate) fn unfollow(&self, number: Number, topic: &Topic) {
        forget(&mut self.lock().topics, topic, |followers| remove(followers, number));
    }

    /// Has a queue follow a channel of other programs', too. It is told by a gap when LISTEN is in force.
    pub(crate) fn listen(&self, number: Number, channel: &Channel) {
        let mut state = self.lock();
        let State { queues, channels, .. } = &mut *state;
        if let Some(queue) = queues.get(&number) {
            add(&mut channels.entry(channel.clone()).or_default().waiting, number, queue);
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn unlisten(&self, number: Number, channel: &Channel) {
        forget(&mut self.lock().channels, channel, |wanted| wanted.remove(number));
        self.changed.notify_one();
    }

    /// Waits until somebody has subscribed. Cancel safe.
    pub(crate) async fn subscribed(&self) {
        self.subscribed.notified().await;
    }

    /// Waits until other channels may be wanted than before. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The channels of other programs' that are to be listened to.
    pub(crate) fn channels(&self) -> HashSet<Channel> {
        self.lock().channels.keys().cloned().collect()
    }

    /// Tells those who have waited for it that LISTEN is in force.
    pub(crate) fn in_force(&self, channels: &HashSet<Channel>) {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        for (_, wanted) in state.channels.iter_mut().filter(|(channel, _)| channels.contains(*channel)) {
            for (number, queue) in wanted.waiting.drain(..) {
                wakers.0.extend(queue.gap(GapReason::Started));
                add(&mut wanted.followers, number, &queue);
            }
        }
    }

    /// Delivers notifications of the bus's own, topics and their payloads.
    pub(crate) fn deliver_all<'e>(&self, entries: impl Iterator<Item = (&'e str, &'e str)>) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        for (topic, payload) in entries {
            if let Some((topic, followers)) = state.topics.get_key_value(topic) {
                send(followers, || NotificationSource::Topic(topic.clone()), payload, &mut wakers);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn deliver(&self, topic: &str, payload: &str) {
        self.deliver_all([(topic, payload)].into_iter());
    }

    /// Delivers a notification as it came from PostgreSQL.
    pub(crate) fn deliver_from(&self, channel: &str, payload: &str) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        if let Some((channel, wanted)) = state.channels.get_key_value(channel) {
            send(&wanted.followers, || NotificationSource::Channel(channel.clone()), payload, &mut wakers);
        }
    }

    /// Tells everybody that something may have been missed.
    pub(crate) fn gap(&self, reason: GapReason) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        wakers.0.extend(state.queues.values().filter_map(|queue| queue.gap(reason)));
    }

    /// Tells those who follow these topics.
    pub(crate) fn gap_of(&self, topics: &[Topic], reason: GapReason) {
        let mut wakers = Wakers::default();
        let state = self.lock();
        let followers = topics.iter().filter_map(|topic| state.topics.get(topic)).flatten();
        wakers.0.extend(followers.filter_map(|(_, queue)| queue.gap(reason)));
    }

    /// Ends all subscriptions, those to come too, once they have delivered what they hold.
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

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in the critical sections can leave the maps half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    fn remove(&mut self, number: Number) -> bool {
        let followed = remove(&mut self.followers, number);
        let waited = remove(&mut self.waiting, number);
        followed && waited
    }
}

/// Whom to wake. Made before the lock is taken, and so dropped after it is given back: a task that is woken may run at once, and
/// come here.
#[derive(Default)]
struct Wakers(Vec<Waker>);

impl Drop for Wakers {
    fn drop(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}

fn send(followers: &Followers, source: impl Fn() -> NotificationSource, payload: &str, wakers: &mut Wakers) {
    // One copy, however many there are; most notifications carry none.
    let payload: Option<Arc<str>> = (!payload.is_empty()).then(|| payload.into());
    for (_, queue) in followers {
        wakers.0.extend(queue.push(Notification { source: source(), payload: payload.clone() }));
    }
}

fn add(followers: &mut Followers, number: Number, queue: &Arc<Queue>) {
    if let Err(place) = followers.binary_search_by_key(&number, |(number, _)| *number) {
        followers.insert(place, (number, Arc::clone(queue)));
    }
}

/// Tells whether nobody is left.
fn remove(followers: &mut Followers, number: Number) -> bool {
    if let Ok(place) = followers.binary_search_by_key(&number, |(number, _)| *number) {
        followers.remove(place);
    }
    followers.is_empty()
}

fn forget<K: Eq + Hash, V, S: BuildHasher>(
    map: &mut HashMap<K, V, S>,
    key: &K,
    remove: impl FnOnce(&mut V) -> bool,
) {
    if let Some(followers) = map.get_mut(key)
        && remove(followers)
    {
        map.remove(key);
    }
}
