//! The receiving end of a bus.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};

use super::notification::Delivery;
use super::queue::Queue;
use super::routes::{QueueId, Routes};
use crate::{Channel, Topic};

/// A `Stream` of the deliveries of topics and channels. It ends when the bus is closed.
///
/// Dropping it unsubscribes. A slow subscriber delays nobody: when its queue is full, one [`Gap`](crate::Gap) counts the
/// notifications that did not fit.
pub struct Subscription {
    queue: Arc<Queue>,
    id: QueueId,
    topics: HashSet<Topic>,
    channels: HashSet<Channel>,
    routes: Arc<Routes>,
}

impl Subscription {
    pub(crate) fn open(routes: &Arc<Routes>, size: usize) -> Self {
        let (id, queue) = routes.open(size);
        Self { queue, id, topics: HashSet::new(), channels: HashSet::new(), routes: Arc::clone(routes) }
    }

    /// The next delivery, or `None` once the bus is closed. Cancel safe.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.next().await
    }

    /// Adds a topic, in force when the call returns. Returns whether the topic is new to the subscription.
    pub fn subscribe(&mut self, topic: &Topic) -> bool {
        self.routes.subscribe(self.id, topic);
        self.topics.insert(topic.clone())
    }

    /// Removes a topic. Notifications in the queue are still delivered. Returns whether the subscription had the topic.
    pub fn unsubscribe(&mut self, topic: &Topic) -> bool {
        self.routes.unsubscribe(self.id, topic);
        self.topics.remove(topic)
    }

    /// Adds a channel, as [`Bus::listen`](crate::Bus::listen) does: a gap follows when LISTEN is in force. Returns whether the channel
    /// is new to the subscription; if it is not, the call does nothing.
    pub fn listen(&mut self, channel: &Channel) -> bool {
        let is_new = self.channels.insert(channel.clone());
        if is_new {
            self.routes.listen(self.id, channel);
        }
        is_new
    }

    /// Removes a channel. Notifications in the queue are still delivered. Returns whether the subscription had the channel.
    pub fn unlisten(&mut self, channel: &Channel) -> bool {
        self.routes.unlisten(self.id, channel);
        self.channels.remove(channel)
    }

    /// The topics of the subscription, in no order.
    #[must_use]
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.topics.iter()
    }

    /// The channels of the subscription, in no order.
    #[must_use]
    pub fn channels(&self) -> impl ExactSizeIterator<Item = &Channel> {
        self.channels.iter()
    }
}

/// Shows how many notifications wait, and no payload: payloads are data of the program.
impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("topics", &self.topics)
            .field("channels", &self.channels)
            .field("waiting", &self.queue.len())
            .finish_non_exhaustive()
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
        self.routes.remove(self.id, self.topics.drain(), self.channels.drain());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::notification::{Gap, GapReason, NotificationSource};
    use super::super::routes::Counts;
    use super::*;
    use crate::state::Counters;

    fn routes() -> (Arc<Routes>, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        (Arc::new(Routes::new(Arc::clone(&counters))), counters)
    }

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    fn channel(name: &str) -> Channel {
        Channel::new(name).expect("a channel")
    }

    fn subscribe(routes: &Arc<Routes>, name: &str, size: usize) -> Subscription {
        let mut subscription = Subscription::open(routes, size);
        subscription.subscribe(&topic(name));
        subscription
    }

    fn deliver(routes: &Routes, topic: &str, payload: &str) {
        routes.deliver([(topic, payload)].into_iter());
    }

    fn drain(subscription: &mut Subscription) -> Vec<Delivery> {
        std::iter::from_fn(|| subscription.recv().now_or_never().flatten()).collect()
    }

    fn payloads(subscription: &mut Subscription) -> Vec<String> {
        let text = |delivery| match delivery {
            Delivery::Notification(notification) => notification.payload().to_owned(),
            Delivery::Gap(gap) => format!("[{gap}]"),
        };
        drain(subscription).into_iter().map(text).collect()
    }

    #[test]
    fn a_full_queue_holds_its_notifications_and_one_gap_that_counts_the_rest() {
        let (routes, counters) = routes();
        let mut slow = subscribe(&routes, "t", 2);
        let mut quick = subscribe(&routes, "t", 100);

        for n in 0..10 {
            deliver(&routes, "t", &n.to_string());
        }

        let seen = drain(&mut slow);
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[2], Delivery::Gap(Gap { reason: GapReason::Lagged, missed: Some(8) }));
        assert_eq!(counters.lagged.get(), 8);
        assert_eq!(drain(&mut quick).len(), 10);

        deliver(&routes, "t", "again");
        assert_eq!(payloads(&mut slow), ["again"]);
    }

    #[test]
    fn a_gap_stands_where_notifications_were_missed() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 3);

        deliver(&routes, "t", "before");
        routes.gap(GapReason::Reconnected);
        deliver(&routes, "t", "after");

        assert_eq!(payloads(&mut subscription), ["before", "[the listening session was lost]", "after"]);
    }

    #[test]
    fn two_waiting_gaps_become_one_after_all_that_was_delivered_before() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 3);

        routes.gap(GapReason::Reconnected);
        deliver(&routes, "t", "between");
        routes.gap(GapReason::Overflow);
        deliver(&routes, "t", "after");

        assert_eq!(payloads(&mut subscription), ["between", "[the listening session was lost]", "after"]);
    }

    #[test]
    fn a_gap_has_a_count_only_while_the_count_is_known() {
        let (routes, counters) = routes();
        let mut subscription = subscribe(&routes, "t", 1);
        for n in 0..3 {
            deliver(&routes, "t", &n.to_string());
        }
        routes.gap(GapReason::Reconnected);
        deliver(&routes, "t", "3");

        assert_eq!(payloads(&mut subscription), ["0", "[the queue was full]"]);

        routes.gap(GapReason::Reconnected);
        for n in 0..3 {
            deliver(&routes, "t", &n.to_string());
        }
        assert_eq!(payloads(&mut subscription), ["0", "[the queue was full]"]);
        assert_eq!(counters.lagged.get(), 5);
    }

    #[test]
    fn once_the_queue_was_full_nothing_is_queued_until_its_gap_is_taken() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 2);
        for n in 0..3 {
            deliver(&routes, "t", &n.to_string());
        }
        assert!(matches!(subscription.recv().now_or_never(), Some(Some(Delivery::Notification(_)))));

        deliver(&routes, "t", "3");

        assert_eq!(payloads(&mut subscription), ["1", "[the queue was full, 2 missed]"]);
        deliver(&routes, "t", "4");
        assert_eq!(payloads(&mut subscription), ["4"]);
    }

    #[test]
    fn a_subscription_to_many_topics_receives_a_gap_once() {
        let (routes, _) = routes();
        let mut many = subscribe(&routes, "a", 10);
        assert!(many.subscribe(&topic("b")));
        assert!(!many.subscribe(&topic("b")), "already");
        let mut other = subscribe(&routes, "b", 10);

        for name in ["a", "b", "c"] {
            deliver(&routes, name, name);
        }
        routes.gap(GapReason::Reconnected);

        assert_eq!(payloads(&mut many), ["a", "b", "[the listening session was lost]"]);
        assert_eq!(payloads(&mut other), ["b", "[the listening session was lost]"]);

        assert!(many.unsubscribe(&topic("a")));
        assert!(!many.unsubscribe(&topic("a")), "no longer");
        deliver(&routes, "a", "late");
        deliver(&routes, "b", "still");
        assert_eq!(payloads(&mut many), ["still"]);
    }

    #[test]
    fn a_channel_delivers_from_its_gap_on() {
        let (routes, _) = routes();
        let mut raw = Subscription::open(&routes, 10);
        raw.listen(&channel("jobs"));
        assert_eq!(routes.channels(), [channel("jobs")].into());
        routes.deliver_raw("jobs", "too early");
        assert_eq!(drain(&mut raw), []);

        routes.start(&[channel("jobs")].into());
        routes.deliver_raw("jobs", "1");
        deliver(&routes, "jobs", "a topic is no channel");

        let seen = drain(&mut raw);
        assert_eq!(seen[0], Delivery::Gap(Gap { reason: GapReason::Started, missed: None }));
        let [_, Delivery::Notification(notification)] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(notification.source(), &NotificationSource::Channel(channel("jobs")));
        assert!(!raw.listen(&channel("jobs")), "already");
        routes.start(&[channel("jobs")].into());
        assert_eq!(drain(&mut raw), [], "the gap comes once");

        drop(raw);
        assert_eq!(routes.channels(), [].into());
    }

    #[test]
    fn a_subscription_to_a_closed_bus_ends_at_once() {
        let (routes, _) = routes();
        routes.close();

        let mut late = subscribe(&routes, "t", 1);

        assert_eq!(late.recv().now_or_never(), Some(None));
    }

    #[test]
    fn dropping_a_subscription_removes_its_topics() {
        let (routes, _) = routes();
        let counts = |topics, subscribers| Counts { topics, channels: 0, subscribers };
        let mut first = subscribe(&routes, "t", 1);
        first.subscribe(&topic("u"));
        let second = subscribe(&routes, "t", 1);
        assert_eq!(routes.count(), counts(2, 2));

        drop(first);
        assert_eq!(routes.count(), counts(1, 1));

        drop(second);
        assert_eq!(routes.count(), counts(0, 0));
    }

    #[test]
    fn a_closed_bus_ends_a_subscription_after_its_queue() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 4);
        deliver(&routes, "t", "last");

        routes.close();

        assert!(matches!(subscription.recv().now_or_never(), Some(Some(Delivery::Notification(_)))));
        assert_eq!(subscription.recv().now_or_never(), Some(None));
    }
}
