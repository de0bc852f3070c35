//! The receiving end.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};

use crate::delivery::Delivery;
use crate::queue::Queue;
use crate::routes::{Number, Routes};
use crate::{Channel, Topic};

/// Deliveries of one topic, of many, of channels, or of all of these together, as a `Stream`; ends when the bus is closed.
///
/// Dropping it unsubscribes. A subscriber that falls behind delays nobody: its queue fills, and then it holds one
/// [`Gap`](crate::Gap) that counts what did not fit.
pub struct Subscription {
    queue: Arc<Queue>,
    number: Number,
    topics: HashSet<Topic>,
    channels: HashSet<Channel>,
    routes: Arc<Routes>,
}

impl Subscription {
    pub(crate) fn open(routes: &Arc<Routes>, size: usize) -> Self {
        let (number, queue) = routes.open(size);
        Self { queue, number, topics: HashSet::new(), channels: HashSet::new(), routes: Arc::clone(routes) }
    }

    /// The next delivery, or `None` once the bus is closed. Cancel safe.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.next().await
    }

    /// Follows a topic, too, in force when the call returns. Tells whether it did not already.
    pub fn subscribe(&mut self, topic: &Topic) -> bool {
        self.routes.follow(self.number, topic);
        self.topics.insert(topic.clone())
    }

    /// Follows a topic no longer. What waits is still delivered. Tells whether it did.
    pub fn unsubscribe(&mut self, topic: &Topic) -> bool {
        self.routes.unfollow(self.number, topic);
        self.topics.remove(topic)
    }

    /// Follows a channel of other programs', too, as [`Bus::listen`](crate::Bus::listen) does: a gap tells when LISTEN is in
    /// force. Tells whether it did not already, and does nothing then.
    pub fn listen(&mut self, channel: &Channel) -> bool {
        let is_new = self.channels.insert(channel.clone());
        if is_new {
            self.routes.listen(self.number, channel);
        }
        is_new
    }

    /// Follows a channel no longer. What waits is still delivered. Tells whether it did.
    pub fn unlisten(&mut self, channel: &Channel) -> bool {
        self.routes.unlisten(self.number, channel);
        self.channels.remove(channel)
    }

    /// The topics that it follows, in no order.
    #[must_use]
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.topics.iter()
    }

    /// The channels that it follows, in no order.
    #[must_use]
    pub fn channels(&self) -> impl ExactSizeIterator<Item = &Channel> {
        self.channels.iter()
    }
}

/// How much waits, and not what: payloads are the program's.
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
        self.routes.leave(self.number, self.topics.drain(), self.channels.drain());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::delivery::{Gap, GapReason, NotificationSource};
    use crate::routes::Counts;
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
            routes.deliver("t", &n.to_string());
        }

        let seen = drain(&mut slow);
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[2], Delivery::Gap(Gap { reason: GapReason::Lagged, missed: Some(8) }));
        assert_eq!(counters.lagged.get(), 8);
        assert_eq!(drain(&mut quick).len(), 10);

        routes.deliver("t", "again");
        assert_eq!(payloads(&mut slow), ["again"]);
    }

    #[test]
    fn a_gap_stands_where_something_was_missed() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 3);

        routes.deliver("t", "before");
        routes.gap(GapReason::Reconnected);
        routes.deliver("t", "after");

        assert_eq!(payloads(&mut subscription), ["before", "[the link was down]", "after"]);
    }

    #[test]
    fn two_gaps_that_wait_are_one_after_all_that_came_before_them() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 3);

        routes.gap(GapReason::Reconnected);
        routes.deliver("t", "between");
        routes.gap(GapReason::Overflow);
        routes.deliver("t", "after");

        assert_eq!(payloads(&mut subscription), ["between", "[the link was down]", "after"]);
    }

    #[test]
    fn a_gap_counts_only_while_the_count_is_known() {
        let (routes, counters) = routes();
        let mut subscription = subscribe(&routes, "t", 1);
        for n in 0..3 {
            routes.deliver("t", &n.to_string());
        }
        routes.gap(GapReason::Reconnected);
        routes.deliver("t", "3");

        assert_eq!(payloads(&mut subscription), ["0", "[the queue was full]"]);

        routes.gap(GapReason::Reconnected);
        for n in 0..3 {
            routes.deliver("t", &n.to_string());
        }
        assert_eq!(payloads(&mut subscription), ["0", "[the queue was full]"]);
        assert_eq!(counters.lagged.get(), 5);
    }

    #[test]
    fn once_the_queue_was_full_nothing_comes_until_its_gap_is_taken() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 2);
        for n in 0..3 {
            routes.deliver("t", &n.to_string());
        }
        assert!(matches!(subscription.recv().now_or_never(), Some(Some(Delivery::Notification(_)))));

        routes.deliver("t", "3");

        assert_eq!(payloads(&mut subscription), ["1", "[the queue was full, 2 missed]"]);
        routes.deliver("t", "4");
        assert_eq!(payloads(&mut subscription), ["4"]);
    }

    #[test]
    fn one_subscription_follows_many_topics_and_is_told_of_a_gap_once() {
        let (routes, _) = routes();
        let mut many = subscribe(&routes, "a", 10);
        assert!(many.subscribe(&topic("b")));
        assert!(!many.subscribe(&topic("b")), "already");
        let mut other = subscribe(&routes, "b", 10);

        for name in ["a", "b", "c"] {
            routes.deliver(name, name);
        }
        routes.gap(GapReason::Reconnected);

        assert_eq!(payloads(&mut many), ["a", "b", "[the link was down]"]);
        assert_eq!(payloads(&mut other), ["b", "[the link was down]"]);

        assert!(many.unsubscribe(&topic("a")));
        assert!(!many.unsubscribe(&topic("a")), "no longer");
        routes.deliver("a", "late");
        routes.deliver("b", "still");
        assert_eq!(payloads(&mut many), ["still"]);
    }

    #[test]
    fn a_channel_delivers_once_it_is_in_force_and_says_so_by_a_gap() {
        let (routes, _) = routes();
        let mut raw = Subscription::open(&routes, 10);
        raw.listen(&channel("jobs"));
        assert_eq!(routes.channels(), [channel("jobs")].into());
        routes.deliver_from("jobs", "too early");
        assert_eq!(drain(&mut raw), []);

        routes.in_force(&[channel("jobs")].into());
        routes.deliver_from("jobs", "1");
        routes.deliver("jobs", "a topic is no channel");

        let seen = drain(&mut raw);
        assert_eq!(seen[0], Delivery::Gap(Gap { reason: GapReason::Started, missed: None }));
        let [_, Delivery::Notification(notification)] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(notification.source(), &NotificationSource::Channel(channel("jobs")));
        assert!(!raw.listen(&channel("jobs")), "already");
        routes.in_force(&[channel("jobs")].into());
        assert_eq!(drain(&mut raw), [], "it is said once");

        drop(raw);
        assert_eq!(routes.channels(), [].into());
    }

    #[test]
    fn a_subscription_to_a_closed_bus_has_ended() {
        let (routes, _) = routes();
        routes.close();

        let mut late = subscribe(&routes, "t", 1);

        assert_eq!(late.recv().now_or_never(), Some(None));
    }

    #[test]
    fn dropping_a_subscription_forgets_its_topics() {
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
    fn a_closed_bus_ends_a_subscription_after_what_it_holds() {
        let (routes, _) = routes();
        let mut subscription = subscribe(&routes, "t", 4);
        routes.deliver("t", "last");

        routes.close();

        assert!(matches!(subscription.recv().now_or_never(), Some(Some(Delivery::Notification(_)))));
        assert_eq!(subscription.recv().now_or_never(), Some(None));
    }
}
