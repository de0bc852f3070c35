//! Who wants to hear of what, in this process.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::{Stream, StreamExt};

use crate::delivery::{Delivery, Gap, GapReason, Notification};
use crate::topic::Topic;

/// The map from topics to subscribers' queues. A lock, held for the time of a look-up: subscribing is then in force
/// when the call returns, and nobody has to wait for a task.
#[derive(Default)]
pub(crate) struct Routes {
    state: Mutex<RoutesState>,
}

#[derive(Default)]
struct RoutesState {
    topics: HashMap<Topic, Vec<Arc<Queue>>>,
    closed: bool,
}

impl Routes {
    pub(crate) fn subscribe(self: &Arc<Self>, topic: &Topic, size: usize) -> Subscription {
        let queue = Arc::new(Queue { size: size.max(1), state: Mutex::default() });
        let mut state = self.lock();
        if state.closed {
            queue.close();
        }
        state.topics.entry(topic.clone()).or_default().push(Arc::clone(&queue));
        drop(state);
        Subscription { queue, topic: topic.clone(), routes: Arc::clone(self) }
    }

    pub(crate) fn deliver(&self, topic: &str, payload: &str) {
        let Ok(topic) = Topic::new(topic) else { return };
        if let Some(queues) = self.lock().topics.get(&topic) {
            for queue in queues {
                let payload = payload.to_owned();
                queue.push(Notification { topic: topic.clone(), payload });
            }
        }
    }

    /// Tells everybody that something may have been missed.
    pub(crate) fn gap(&self, reason: GapReason) {
        for queue in self.lock().topics.values().flatten() {
            queue.gap(Gap { reason, missed: None });
        }
    }

    /// Ends all subscriptions, those to come too, once they have delivered what they hold.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for queue in state.topics.values().flatten() {
            queue.close();
        }
    }

    /// How many topics have subscribers, and how many subscribers there are.
    pub(crate) fn count(&self) -> (usize, usize) {
        let topics = &self.lock().topics;
        (topics.len(), topics.values().map(Vec::len).sum())
    }

    fn unsubscribe(&self, topic: &Topic, queue: &Arc<Queue>) {
        let mut state = self.lock();
        if let Some(queues) = state.topics.get_mut(topic) {
            queues.retain(|other| !Arc::ptr_eq(other, queue));
            if queues.is_empty() {
                state.topics.remove(topic);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, RoutesState> {
        // Nothing in the critical sections can leave the map half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One subscriber's queue: `size` notifications, then a single gap that counts the rest.
struct Queue {
    size: usize,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Notification>,
    /// Delivered after what waits: what is missing came later.
    gap: Option<Gap>,
    closed: bool,
    waker: Option<Waker>,
}

impl Queue {
    fn push(&self, notification: Notification) {
        let mut state = self.lock();
        let state = &mut *state;
        match &mut state.gap {
            // After a gap the subscriber looks at everything anyway; keeping the order would cost memory for nothing.
            Some(gap) => gap.missed = gap.missed.map(|missed| missed + 1),
            None if state.waiting.len() < self.size => state.waiting.push_back(notification),
            None => {
                state.gap = Some(Gap { reason: GapReason::Lagged, missed: Some(1) });
            }
        }
        state.wake();
    }

    fn gap(&self, gap: Gap) {
        let mut state = self.lock();
        match &mut state.gap {
            // One gap says it all, but how many are missing is not known any more.
            Some(waiting) => waiting.missed = None,
            None => state.gap = Some(gap),
        }
        state.wake();
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.wake();
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<Delivery>> {
        let mut state = self.lock();
        if let Some(notification) = state.waiting.pop_front() {
            return Poll::Ready(Some(Delivery::Notification(notification)));
        }
        if let Some(gap) = state.gap.take() {
            return Poll::Ready(Some(Delivery::Gap(gap)));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Deliveries of one topic, as a `Stream`; ends when the bus is closed.
///
/// Dropping it unsubscribes. A subscriber that falls behind delays nobody: its queue fills, and then it holds one
/// [`Gap`] that counts what did not fit.
pub struct Subscription {
    queue: Arc<Queue>,
    topic: Topic,
    routes: Arc<Routes>,
}

/// How much waits, and not what: payloads are the program's.
impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.queue.lock().waiting.len();
        f.debug_struct("Subscription")
            .field("topic", &self.topic)
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// The next delivery, or `None` once the bus is closed. Cancel safe.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.next().await
    }

    /// The topic subscribed to.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.queue.poll(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.routes.unsubscribe(&self.topic, &self.queue);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn drain(subscription: &mut Subscription) -> Vec<Delivery> {
        std::iter::from_fn(|| subscription.recv().now_or_never().flatten()).collect()
    }

    #[test]
    fn a_full_queue_holds_its_notifications_and_one_gap_that_counts_the_rest() {
        let routes = Arc::new(Routes::default());
        let topic = Topic::new("t").expect("a topic");
        let mut slow = routes.subscribe(&topic, 2);
        let mut quick = routes.subscribe(&topic, 100);

        for n in 0..10 {
            routes.deliver("t", &n.to_string());
        }

        let seen = drain(&mut slow);
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[2], Delivery::Gap(Gap { reason: GapReason::Lagged, missed: Some(8) }));
        assert_eq!(drain(&mut quick).len(), 10);

        routes.deliver("t", "again");
        assert!(matches!(&drain(&mut slow)[..], [Delivery::Notification(n)] if n.payload() == "again"));
    }

    #[test]
    fn a_gap_counts_only_while_the_count_is_known() {
        let routes = Arc::new(Routes::default());
        let mut subscription = routes.subscribe(&Topic::new("t").expect("a topic"), 1);

        routes.gap(GapReason::Reconnected);
        routes.deliver("t", "after");
        assert_eq!(
            drain(&mut subscription),
            [Delivery::Gap(Gap { reason: GapReason::Reconnected, missed: None })]
        );

        for n in 0..3 {
            routes.deliver("t", &n.to_string());
        }
        routes.gap(GapReason::Reconnected);
        let gap = Delivery::Gap(Gap { reason: GapReason::Lagged, missed: None });
        assert_eq!(drain(&mut subscription).last(), Some(&gap));
    }

    #[test]
    fn a_subscription_to_a_closed_bus_has_ended() {
        let routes = Arc::new(Routes::default());
        routes.close();

        let mut late = routes.subscribe(&Topic::new("t").expect("a topic"), 1);

        assert_eq!(late.recv().now_or_never(), Some(None));
    }

    #[test]
    fn dropping_a_subscription_forgets_its_topic() {
        let routes = Arc::new(Routes::default());
        let topic = Topic::new("t").expect("a topic");
        let first = routes.subscribe(&topic, 1);
        let second = routes.subscribe(&topic, 1);
        assert_eq!(routes.count(), (1, 2));

        drop(first);
        assert_eq!(routes.count(), (1, 1));

        drop(second);
        assert_eq!(routes.count(), (0, 0));
    }

    #[test]
    fn a_closed_bus_ends_a_subscription_after_what_it_holds() {
        let routes = Arc::new(Routes::default());
        let mut subscription = routes.subscribe(&Topic::new("t").expect("a topic"), 4);
        routes.deliver("t", "last");

        routes.close();

        assert!(matches!(subscription.recv().now_or_never(), Some(Some(Delivery::Notification(_)))));
        assert_eq!(subscription.recv().now_or_never(), Some(None));
    }
}
