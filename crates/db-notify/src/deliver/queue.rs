//! The queue of a subscription.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::notification::{Delivery, Gap, GapReason, Notification};
use crate::state::Counters;

/// Holds up to `size` notifications, and at most one gap among them. The gap stands after all notifications that were delivered before
/// it. If another gap comes while it waits, it moves to the end and stands for both. When the queue is full, the gap counts the
/// notifications that follow, until it is taken.
pub(crate) struct Queue {
    size: usize,
    state: Mutex<QueueState>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Notification>,
    gap: Option<WaitingGap>,
    closed: bool,
    waker: Option<Waker>,
}

struct WaitingGap {
    gap: Gap,
    /// How many notifications of the queue come before the gap.
    ahead: usize,
    /// The queue was full: the gap counts each further notification.
    full: bool,
}

impl Queue {
    pub(crate) fn new(size: usize, counters: Arc<Counters>) -> Self {
        Self { size: size.max(1), state: Mutex::default(), counters }
    }

    /// Returns the waker of the subscriber. The caller wakes it without holding a lock, since the woken task may run at once.
    #[must_use]
    pub(crate) fn push(&self, notification: Notification) -> Option<Waker> {
        let mut guard = self.lock();
        let QueueState { waiting, gap, .. } = &mut *guard;
        if waiting.len() < self.size && !gap.as_ref().is_some_and(|gap| gap.full) {
            waiting.push_back(notification);
        } else {
            self.counters.lagged.add(1);
            let ahead = waiting.len();
            match gap {
                None => {
                    let lagged = Gap { reason: GapReason::Lagged, missed: Some(1) };
                    *gap = Some(WaitingGap { gap: lagged, ahead, full: true });
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
        let QueueState { waiting, gap, .. } = &mut *guard;
        let ahead = waiting.len();
        match gap {
            None => *gap = Some(WaitingGap { gap: Gap { reason, missed: None }, ahead, full: false }),
            // The number of missed notifications is unknown now.
            Some(waiting) => {
                (waiting.gap.missed, waiting.ahead) = (None, ahead);
                // A gap of this subscription alone is not hidden behind a gap of all subscriptions.
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
        let next = self.next(cx);
        if let Poll::Ready(Some(Delivery::Gap(gap))) = &next {
            self.counters.received(*gap);
        }
        next
    }

    fn next(&self, cx: &Context<'_>) -> Poll<Option<Delivery>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(WaitingGap { gap, .. }) = state.gap.take_if(|gap| gap.ahead == 0) {
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
        if state.waiting.capacity() > KEPT_CAPACITY {
            state.waiting.shrink_to(KEPT_CAPACITY);
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

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The capacity, in notifications, that an empty queue keeps.
const KEPT_CAPACITY: usize = 64;
