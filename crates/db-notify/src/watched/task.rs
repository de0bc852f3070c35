//! The task of a map: receives announcements, and sends those of its own process.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::announcement::{self, Announcement, Node};
use super::announcer::{Announced, Announcer};
use super::marks::Marks;
use crate::deliver::{Delivery, GapReason};
use crate::state::Counter;
use crate::{Bus, Subscription, Topic};

/// What the handles of a map share with its task.
pub(super) struct MapShared {
    pub(super) bus: Bus,
    /// The topic of the announcements.
    pub(super) announcements: Topic,
    pub(super) node: Node,
    pub(super) state: Mutex<MapState>,
    /// Notified when a watch began or ended.
    pub(super) changed: Notify,
    /// An unreadable announcement was logged. Later ones are not.
    pub(super) logged_unreadable: AtomicBool,
    pub(super) gated: Counter,
    pub(super) recovered: Counter,
}

pub(super) struct MapState {
    pub(super) marks: Marks,
    pub(super) announcer: Announcer,
    /// The number of the last announcement.
    pub(super) last: u64,
}

impl MapShared {
    pub(super) fn lock(&self) -> MutexGuard<'_, MapState> {
        // No critical section can leave the map half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode(&self, state: &mut MapState, watches: bool, topics: Vec<Topic>) -> Vec<String> {
        announcement::encode(&self.announcements, self.node, watches, topics, || {
            state.last += 1;
            state.last
        })
    }

    /// The announcements of what has changed, if they are to be sent now.
    fn changes(&self) -> Vec<String> {
        let mut state = self.lock();
        let MapState { marks, announcer, .. } = &mut *state;
        let Some(changes) = announcer.changes(marks, Instant::now()) else { return Vec::new() };
        let mut announcements = self.encode(&mut state, true, changes.began);
        announcements.extend(self.encode(&mut state, false, changes.ended));
        announcements
    }

    /// The announcements of all that is watched here, if they are to be sent now; and when the next renewal is due.
    fn renewal(&self) -> (Vec<String>, Instant) {
        let now = Instant::now();
        let is_listening = self.bus.is_listening();
        let mut state = self.lock();
        let MapState { marks, announcer, .. } = &mut *state;
        // A notification that was dropped while no announcement could arrive is remembered until one can.
        if is_listening {
            marks.expire(now);
        }
        let topics = announcer.renew(marks, now, fastrand::f64()).unwrap_or_default();
        let due = announcer.due();
        (self.encode(&mut state, true, topics), due)
    }

    /// Sends announcements. The receiver gets its value when the last one was sent; `None` if there is none to send.
    fn send(&self, announcements: &[String]) -> Option<oneshot::Receiver<()>> {
        // The notifier keeps their order, so the last one stands for all.
        let (last, rest) = announcements.split_last()?;
        let (sent, receipt) = oneshot::channel();
        let accepted = rest
            .iter()
            .try_for_each(|announcement| self.bus.notify_soon_with(&self.announcements, announcement))
            .and_then(|()| self.bus.notify_with_receipt(&self.announcements, last, sent));
        if let Err(error) = accepted {
            tracing::debug!(%error, "an announcement of watched topics was not sent");
        }
        Some(receipt)
    }

    /// Other processes may have dropped notifications of topics that are watched here.
    fn gap_unannounced(&self) {
        let own: Vec<Topic> = self.lock().marks.own().cloned().collect();
        tracing::debug!(
            topics = own.len(),
            "watched topics were announced late: their watchers are told of a gap"
        );
        self.bus.gap_for(&own, GapReason::Unannounced);
    }

    /// Takes note of an announcement.
    fn receive(&self, text: &str) {
        match Announcement::decode(text) {
            Some(announcement) if announcement.node == self.node => {}
            Some(announcement) => {
                let crossed = self.lock().marks.announced(announcement, Instant::now());
                self.recover(&crossed);
            }
            None => {
                if !self.logged_unreadable.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        bytes = text.len(),
                        "an announcement of watched topics has an unknown form: all notifications are sent for two \
                         renewals. Let all processes run the same version of this library"
                    );
                }
                self.distrust();
            }
        }
    }

    /// An announcement may have been missed.
    fn distrust(&self) {
        let dropped = self.lock().marks.distrust(Instant::now());
        self.recover(&dropped);
    }

    /// Sends notifications that were dropped.
    fn recover(&self, topics: &[Topic]) {
        self.recovered.add(topics.len());
        for topic in topics {
            if let Err(error) = self.bus.notify_soon(topic) {
                tracing::debug!(%error, "a dropped notification was not recovered");
            }
        }
    }
}

/// The task holds it. Without the task no announcement is received, and everything is sent.
pub(super) struct TaskGuard(pub(super) Arc<MapShared>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.lock().marks.distrust_permanently();
        if std::thread::panicking() {
            self.0.distrust();
            self.0.gap_unannounced();
        }
    }
}

/// Receives and sends announcements until the bus is closed.
pub(super) async fn run(guard: TaskGuard, mut subscription: Subscription) {
    let shared = &guard.0;
    let start = {
        let mut state = shared.lock();
        state.announcer.start(Instant::now(), fastrand::f64());
        state.announcer.due()
    };
    let mut timer = pin!(sleep_until(start));
    let mut in_flight = FuturesUnordered::new();
    let receipt = |what, announcements: &[String]| {
        let receipt = shared.send(announcements)?;
        // A bus that closes gives announcements up.
        Some(async move { receipt.await.ok().map(|()| what) })
    };
    loop {
        let renews = tokio::select! {
            delivery = subscription.recv() => match delivery {
                None => return,
                Some(Delivery::Notification(notification)) => {
                    shared.receive(notification.payload());
                    false
                }
                Some(Delivery::Gap(gap)) => {
                    shared.distrust();
                    Announcer::renews_after(gap.reason)
                }
            },
            () = shared.changed.notified() => {
                in_flight.extend(receipt(Announced::Changes, &shared.changes()));
                false
            }
            Some(Some(what)) = in_flight.next() => {
                let is_late = shared.lock().announcer.delivered(what, Instant::now());
                if is_late {
                    shared.gap_unannounced();
                }
                in_flight.extend(receipt(Announced::Changes, &shared.changes()));
                false
            }
            () = &mut timer => true,
        };
        if renews {
            let (announcements, due) = shared.renewal();
            in_flight.extend(receipt(Announced::Renewal, &announcements));
            timer.as_mut().reset(due);
        }
    }
}
