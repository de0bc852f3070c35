//! What one subscriber has not taken yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::delivery::{Delivery, Gap, GapReason, Notification};
use crate::state::Counters;

/// One subscriber's queue: so many notifications, and one gap among them. A gap stands after all that was delivered before it;
/// should there be another reason for one meanwhile, it moves to the end and stands for both. Once the queue was full, nothing
/// comes after the gap until it is taken: it counts.
pub(crate) struct Queue {
    size: usize,
    state: Mutex<State>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Notification>,
    gap: Option<Waiting>,
    closed: bool,
    waker: Option<Waker>,
}

struct Waiting {
    gap: Gap,
    /// How many notifications are taken before it.
    ahead: usize,
    /// Whatever comes belongs to it.
    full: bool,
}

impl Queue {
    pub(crate) fn new(size: usize, counters: Arc<Counters>) -> Self {
        Self { size: size.max(1), state: Mutex::default(), counters }
    }

    /// Returns whom to wake, once no lock is held: the task may run at once, and look.
    #[must_use]
    pub(crate) fn push(&self, notification: Notification) -> Option<Waker> {
        let mut guard = self.lock();
        let State { waiting, gap, .. } = &mut *guard;
        if waiting.len() < self.size && !gap.as_ref().is_some_and(|gap| gap.full) {
            waiting.push_back(notification);
        } else {
            self.counters.lagged.add(1);
            let ahead = waiting.len();
            match gap {
                None => {
                    let lagged = Gap { reason: GapReason::Lagged, missed: Some(1) };
                    *gap = Some(Waiting { gap: lagged, ahead, full: true });
                }
                Some(waiting) => {
                    waiting.gap.missed = waiting.gap.missed.map(|missed| missed + 1);
                    waiting.gap.reason = GapReason::Lagged;
                    (waiting.ahead, waiting.full) = (ahead, true);
                }
            }
        }
        guard.waker.take()
    }

    #[must_use]
    pub(crate) fn gap(&self, reason: GapReason) -> Option<Waker> {
        let mut guard = self.lock();
        let State { waiting, gap, .. } = &mut *guard;
        let ahead = waiting.len();
        match gap {
            None => *gap = Some(Waiting { gap: Gap { reason, missed: None }, ahead, full: false }),
            // How many are missing is not known any more.
            Some(waiting) => {
                (waiting.gap.missed, waiting.ahead) = (None, ahead);
                // What only this subscriber is told of is not hidden behind what everybody is.
                if reason == GapReason::Unannounced && waiting.gap.reason != GapReason::Lagged {
                    waiting.gap.reason = reason;
                }
            }
        }
        guard.waker.take()
    }

    #[must_use]
    pub(crate) fn close(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.closed = true;
        state.waker.take()
    }

    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Option<Delivery>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(Waiting { gap, .. }) = state.gap.take_if(|gap| gap.ahead == 0) {
            return Poll::Ready(Some(Delivery::Gap(gap)));
        }
        if let Some(notification) = state.waiting.pop_front() {
            if let Some(gap) = &mut state.gap {
                gap.ahead -= 1;
            }
            return Poll::Ready(Some(Delivery::Notification(notification)));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        // A queue that once was long does not keep its memory.
        if state.waiting.capacity() > KEPT {
            state.waiting.shrink_to(KEPT);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// How many notifications wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for so many notifications is kept while nothing waits.
const KEPT: usize = 64;
