//! Notifications that wait to be sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::error::NotifyError;
use crate::state::Counters;
use crate::{Topic, wire};

/// Equal notifications wait once, in the place of the last of them. When more than `size` would wait, one message "everything" stands
/// for all.
pub(crate) struct Outbox {
    size: usize,
    state: Mutex<OutboxState>,
    filled: Notify,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct OutboxState {
    batch: Batch,
    /// For each entry of the batch, the place at which it was last pushed.
    places: HashMap<Entry, usize>,
    /// The place of the next entry.
    next: usize,
    /// An entry was pushed again after others, so that the batch is not in the order of the places.
    is_unsorted: bool,
    closed: bool,
}

/// A topic and its payload. Cheap to clone.
type Entry = (Topic, Arc<str>);

/// Notifications that are sent together.
#[derive(Default)]
pub(crate) struct Batch {
    entries: Vec<Entry>,
    everything: bool,
    /// The calls that the batch stands for.
    calls: usize,
    /// The callers that wait until the batch is sent.
    callers: Vec<oneshot::Sender<()>>,
}

/// Checks that a payload can be sent.
pub(crate) fn check(topic: &Topic, payload: &str) -> Result<(), NotifyError> {
    let limit = wire::payload_limit(topic.as_str().len());
    if payload.len() > limit {
        return Err(NotifyError::TooLong { bytes: payload.len(), limit });
    }
    if payload.contains('\0') {
        return Err(NotifyError::Nul);
    }
    Ok(())
}

impl Outbox {
    pub(crate) fn new(size: usize, counters: Arc<Counters>) -> Self {
        Self { size, state: Mutex::default(), filled: Notify::new(), counters }
    }

    /// Adds a notification. `caller` gets its value when the notification was sent, and an error when it is given up.
    pub(crate) fn push(
        &self,
        topic: &Topic,
        payload: &str,
        caller: Option<oneshot::Sender<()>>,
    ) -> Result<(), NotifyError> {
        check(topic, payload)?;
        let entry = (topic.clone(), Arc::from(payload));
        let mut state = self.lock();
        if state.closed {
            return Err(NotifyError::Closed);
        }
        state.batch.calls += 1;
        let coalesced = state.add(entry, self.size);
        state.batch.add_caller(caller);
        drop(state);
        self.counters.coalesced.add(coalesced);
        self.filled.notify_one();
        Ok(())
    }

    /// Accepts no more notifications. Those that wait can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    /// Accepts no more notifications, and gives up those that wait: their callers get an error.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        let given_up = state.take();
        drop(state);
        drop(given_up);
        self.filled.notify_one();
    }

    /// Waits for notifications, and takes all of them. `None` once the outbox is closed and empty. Cancel safe.
    pub(crate) async fn take(&self) -> Option<Batch> {
        loop {
            {
                let mut state = self.lock();
                if !state.batch.is_empty() {
                    return Some(state.take());
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    /// How many notifications wait.
    pub(crate) fn pending(&self) -> usize {
        self.lock().batch.len()
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutboxState {
    /// Returns how many notifications need not be sent any more.
    fn add(&mut self, entry: Entry, size: usize) -> usize {
        let Self { batch, places, next, is_unsorted, .. } = self;
        if batch.everything {
            return 1;
        }
        if let Some(place) = places.get_mut(&entry) {
            if *place + 1 != *next {
                (*place, *is_unsorted) = (*next, true);
                *next += 1;
            }
            return 1;
        }
        if batch.entries.len() == size {
            places.clear();
            batch.everything = true;
            // The message "everything" is the one that is left to send.
            return std::mem::take(&mut batch.entries).len();
        }
        places.insert(entry.clone(), *next);
        *next += 1;
        batch.entries.push(entry);
        0
    }

    /// Takes the batch, in the order in which each entry was last pushed.
    fn take(&mut self) -> Batch {
        let mut batch = std::mem::take(&mut self.batch);
        if std::mem::take(&mut self.is_unsorted) {
            batch.entries.sort_by_cached_key(|entry| self.places.get(entry).copied());
        }
        self.places.clear();
        self.next = 0;
        batch
    }
}

impl Batch {
    /// Packs the notifications into as few payloads as hold them.
    pub(crate) fn payloads(&self) -> Vec<String> {
        if self.everything {
            return vec![wire::EVERYTHING.to_owned()];
        }
        wire::encode(self.entries.iter().map(|(topic, payload)| (topic.as_str(), &**payload)))
    }

    /// How many notifications are sent.
    pub(crate) fn len(&self) -> usize {
        if self.everything { 1 } else { self.entries.len() }
    }

    /// How many calls the batch stands for.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add_caller(&mut self, caller: Option<oneshot::Sender<()>>) {
        // While the server is away, callers may give up and others come, for hours.
        if self.callers.len() == self.callers.capacity() {
            self.callers.retain(|caller| !caller.is_closed());
        }
        self.callers.extend(caller);
    }

    /// Tells the callers that the batch was sent.
    pub(crate) fn sent(self) {
        for caller in self.callers {
            // A caller may have given up.
            let _: Result<(), ()> = caller.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    fn outbox(size: usize) -> (Outbox, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        (Outbox::new(size, Arc::clone(&counters)), counters)
    }

    fn take(outbox: &Outbox) -> Option<Batch> {
        outbox.take().now_or_never().flatten()
    }

    #[test]
    fn equal_notifications_that_wait_together_are_sent_once() {
        let (outbox, counters) = outbox(10);
        for payload in ["a", "b", "a"] {
            outbox.push(&topic("t"), payload, None).expect("pushed");
        }

        assert_eq!((outbox.pending(), counters.coalesced.get()), (2, 1));
        assert_eq!(take(&outbox).expect("a batch").payloads(), ["11:1:tb1:1:ta"]);
        outbox.push(&topic("t"), "a", None).expect("pushed");
        assert_eq!(take(&outbox).expect("another batch").payloads(), ["11:1:ta"]);
    }

    #[test]
    fn of_equal_notifications_the_last_keeps_its_place() {
        let (outbox, counters) = outbox(10);
        for payload in ["on", "off", "on", "on", "x", "off"] {
            outbox.push(&topic("t"), payload, None).expect("pushed");
        }

        assert_eq!(counters.coalesced.get(), 3);
        assert_eq!(take(&outbox).expect("a batch").payloads(), ["11:2:ton1:1:tx1:3:toff"]);
        for payload in ["b", "a"] {
            outbox.push(&topic("t"), payload, None).expect("pushed");
        }
        assert_eq!(take(&outbox).expect("another batch").payloads(), ["11:1:tb1:1:ta"]);
    }

    #[test]
    fn past_its_size_the_outbox_sends_everything_once() {
        let (outbox, counters) = outbox(2);
        for n in 0..5 {
            outbox.push(&topic("t"), &n.to_string(), None).expect("pushed");
        }

        // One message stands for five.
        assert_eq!((outbox.pending(), counters.coalesced.get()), (1, 4));
        assert_eq!(take(&outbox).expect("a batch").payloads(), ["1*"]);
        assert!(take(&outbox).is_none());
    }

    #[test]
    fn a_payload_that_would_not_fit_is_refused_at_the_call() {
        let (outbox, _) = outbox(2);
        let limit = wire::payload_limit(1);

        let error = outbox.push(&topic("t"), &"x".repeat(limit + 1), None).expect_err("too long");

        assert_eq!(error, NotifyError::TooLong { bytes: limit + 1, limit });
        outbox.push(&topic("t"), &"x".repeat(limit), None).expect("the longest that fits");
        assert_eq!(outbox.push(&topic("t"), "\0", None), Err(NotifyError::Nul));
    }

    #[test]
    fn a_closed_outbox_gives_what_waits_and_accepts_nothing() {
        let (outbox, _) = outbox(2);
        outbox.push(&topic("t"), "last", None).expect("pushed");

        outbox.close();

        assert_eq!(outbox.push(&topic("t"), "late", None), Err(NotifyError::Closed));
        assert_eq!(outbox.take().now_or_never().flatten().map(|batch| batch.len()), Some(1));
        assert!(matches!(outbox.take().now_or_never(), Some(None)), "the outbox is closed and empty");
    }
}
