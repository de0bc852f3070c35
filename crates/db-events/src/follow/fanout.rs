//! The pages that a reader publishes to its followers, and how many are kept for slow ones.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::Event;
use crate::read::Events;

/// The most pages that are kept for slow followers. A follower that is further behind reads pages by itself.
const KEPT: usize = 16;
/// The most bytes of the pages that are kept: a few full pages, so that a burst does not make all followers read pages by
/// themselves. The newest page is kept even if it is larger.
const KEPT_BYTES: usize = 4 << 20;

/// The publishing end. A page is kept until each follower has received it, or until the pages after it exceed a limit.
pub(crate) struct Fanout {
    sender: broadcast::Sender<Published>,
    /// The pages that some follower may still have to receive, oldest first, with their sizes.
    kept: VecDeque<(Weak<Slot>, usize)>,
}

#[derive(Clone)]
struct Published {
    slot: Arc<Slot>,
    is_finished: bool,
}

/// A page, until it is dropped for slow followers.
struct Slot(Mutex<Option<Events>>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Events>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fanout {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::channel(KEPT).0, kept: VecDeque::new() }
    }

    /// Subscribes to all pages that are published from now on.
    pub(crate) fn follow(&self) -> Follower {
        Follower(self.sender.subscribe())
    }

    pub(crate) fn followers(&self) -> usize {
        self.sender.receiver_count()
    }

    pub(crate) fn publish(&mut self, events: Events, is_finished: bool) {
        let bytes = events.iter().map(|event| size_of::<Event>() + event.data.len()).sum();
        let slot = Arc::new(Slot(Mutex::new(Some(events))));
        self.kept.retain(|(slot, _)| slot.strong_count() > 0);
        self.kept.push_back((Arc::downgrade(&slot), bytes));
        let mut all: usize = self.kept.iter().map(|(_, bytes)| bytes).sum();
        while all > KEPT_BYTES && self.kept.len() > 1 {
            let Some((oldest, bytes)) = self.kept.pop_front() else { break };
            all -= bytes;
            if let Some(oldest) = oldest.upgrade() {
                oldest.lock().take();
            }
        }
        // Without followers, sending fails, which is no error.
        let _: Result<_, _> = self.sender.send(Published { slot, is_finished });
    }
}

/// The receiving end.
pub(crate) struct Follower(broadcast::Receiver<Published>);

/// What a follower receives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Page {
        events: Events,
        /// Whether the log is finished with these events.
        is_finished: bool,
    },
    /// Pages were dropped for this follower. Read pages from the database until the stream has caught up, then continue here.
    TooSlow,
    /// The reader has ended.
    Ended,
}

impl Follower {
    /// Waits for the next page. Cancel safe.
    pub(crate) async fn next(&mut self) -> Next {
        match self.0.recv().await {
            Ok(Published { slot, is_finished }) => {
                let events = slot.lock().clone();
                if let Some(events) = events {
                    return Next::Page { events, is_finished };
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Next::Ended,
        }
        self.0 = self.0.resubscribe();
        Next::TooSlow
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::Mark;

    fn page(id: i64, bytes: usize) -> Events {
        let at = OffsetDateTime::UNIX_EPOCH;
        let mark = Mark::of(id, at, None);
        Events::new(
            vec![Event { id, kind: "line".into(), version: 1, data: "x".repeat(bytes), at, mark }],
            None,
        )
    }

    fn alive(fanout: &Fanout) -> usize {
        fanout.kept.iter().filter_map(|(slot, _)| slot.upgrade()).filter(|slot| slot.lock().is_some()).count()
    }

    #[tokio::test]
    async fn a_page_that_all_followers_have_received_is_not_kept() {
        let mut fanout = Fanout::new();
        let (mut one, mut other) = (fanout.follow(), fanout.follow());

        fanout.publish(page(1, 10), false);

        for follower in [&mut one, &mut other] {
            assert_eq!(alive(&fanout), 1);
            assert_eq!(follower.next().await, Next::Page { events: page(1, 10), is_finished: false });
        }
        assert_eq!(alive(&fanout), 0);
    }

    #[tokio::test]
    async fn at_most_four_mebibytes_are_kept_for_a_follower_that_receives_nothing() {
        let mut fanout = Fanout::new();
        let mut stuck = fanout.follow();
        for id in 1..=5 {
            fanout.publish(page(id, KEPT_BYTES / 2), false);
        }
        assert_eq!(
            alive(&fanout),
            1,
            "with the size of an event besides its text, two pages exceed the limit"
        );

        assert_eq!(stuck.next().await, Next::TooSlow);

        fanout.publish(page(6, 3 * KEPT_BYTES), true);
        assert_eq!(stuck.next().await, Next::Page { events: page(6, 3 * KEPT_BYTES), is_finished: true });
        drop(fanout);
        assert_eq!(stuck.next().await, Next::Ended);
    }

    #[tokio::test]
    async fn at_most_sixteen_pages_are_kept_for_a_follower_that_receives_nothing() {
        let mut fanout = Fanout::new();
        let mut stuck = fanout.follow();

        for id in 1..=100 {
            fanout.publish(page(id, 1), false);
        }

        assert_eq!(alive(&fanout), KEPT);
        assert_eq!(stuck.next().await, Next::TooSlow);
    }
}
