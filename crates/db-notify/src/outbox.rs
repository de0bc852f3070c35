//! What waits to be sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::Topic;
use crate::state::Counters;
use crate::{NotifyError, wire};

/// Notifications that wait, each once, in the place of the last of those that are equal, and at most so many: past that, one message that says "everything" stands for them all.
pub(crate) struct Outbox {
    size: usize,
    waiting: Mutex<Waiting>,
    filled: Notify,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Waiting {
    batch: Batch,
    /// When each of the batch was last pushed, counted from the batch's first.
    seen: HashMap<Entry, usize>,
    /// The next such number.
    next: usize,
    /// Some were pushed again, and others since they were first.
    is_mixed: bool,
    closed: bool,
}

/// A topic and a payload. Cheap to clone.
type Entry = (Topic, Arc<str>);

/// What is sent together.
#[derive(Default)]
pub(crate) struct Batch {
    entries: Vec<Entry>,
    everything: bool,
    /// Calls that it stands for.
    calls: usize,
    callers: Vec<oneshot::Sender<()>>,
}

/// Whether it can be sent at all.
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
        Self { size, waiting: Mutex::default(), filled: Notify::new(), counters }
    }

    /// Adds a notification; `caller` hears when it was sent.
    pub(crate) fn push(
        &self,
        topic: &Topic,
        payload: &str,
        caller: Option<oneshot::Sender<()>>,
    ) -> Result<(), NotifyError> {
        check(topic, payload)?;
        let entry = (topic.clone(), Arc::from(payload));
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(NotifyError::Closed);
        }
        waiting.batch.calls += 1;
        let superfluous = waiting.add(entry, self.size);
        waiting.batch.wait(caller);
        drop(waiting);
        self.counters.coalesced.add(superfluous);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes no more. What waits can still be sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    /// Takes no more, and gives up what waits: whoever waits for it is told.
    pub(crate) fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let given_up = waiting.take();
        drop(waiting);
        drop(given_up);
        self.filled.notify_one();
    }

    /// Waits until there is something to send, and takes all of it; none once the outbox is closed and empty. Cancel safe.
    pub(crate) async fn take(&self) -> Option<Batch> {
        loop {
            {
                let mut waiting = self.lock();
                if !waiting.batch.is_empty() {
                    return Some(waiting.take());
                }
                if waiting.closed {
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

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Tells how many notifications need not be sent any more.
    fn add(&mut self, entry: Entry, size: usize) -> usize {
        let Self { batch, seen, next, is_mixed, .. } = self;
        if batch.everything {
            return 1;
        }
        if let Some(last) = seen.get_mut(&entry) {
            if *last + 1 != *next {
                (*last, *is_mixed) = (*next, true);
                *next += 1;
            }
            return 1;
        }
        if batch.entries.len() == size {
            seen.clear();
            batch.everything = true;
            // They and this one are now one.
            return std::mem::take(&mut batch.entries).len();
        }
        seen.insert(entry.clone(), *next);
        *next += 1;
        batch.entries.push(entry);
        0
    }

    /// All of it, in the order in which each was last pushed.
    fn take(&mut self) -> Batch {
        let mut batch = std::mem::take(&mut self.batch);
        if std::mem::take(&mut self.is_mixed) {
            batch.entries.sort_by_cached_key(|entry| self.seen.get(entry).copied());
        }
        self.seen.clear();
        self.next = 0;
        batch
    }
}

impl Batch {
    /// As they are sent, in as few payloads as hold them.
    pub(crate) fn payloads(&self) -> Vec<String> {
        if self.everything {
            return vec![wire::EVERYTHING.to_owned()];
        }
        wire::encode(self.entries.iter().map(|(topic, payload)| (topic.as_str(), &**payload)))
    }

    /// How many notifications it is.
    pub(crate) fn len(&self) -> usize {
        if self.everything { 1 } else { self.entries.len() }
    }

    /// How many calls it stands for, be it for several of them at once.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wait(&mut self, caller: Option<oneshot::Sender<()>>) {
        // While the server is away, callers may come and go for hours.
        if self.callers.len() == self.callers.capacity() {
            self.callers.retain(|caller| !caller.is_closed());
        }
        self.callers.extend(caller);
    }

    /// Tells those who wait that it was sent.
    pub(crate) fn sent(self) {
        for caller in self.callers {
            // A caller that no longer waits is no error.
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
    fn past_its_size_the_outbox_says_everything_once() {
        let (outbox, counters) = outbox(2);
        for n in 0..5 {
            outbox.push(&topic("t"), &n.to_string(), None).expect("pushed");
        }

        // Five were one.
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
    fn what_waits_when_it_is_closed_can_be_taken_and_nothing_can_be_added() {
        let (outbox, _) = outbox(2);
        outbox.push(&topic("t"), "last", None).expect("pushed");

        outbox.close();

        assert_eq!(outbox.push(&topic("t"), "late", None), Err(NotifyError::Closed));
        assert_eq!(outbox.take().now_or_never().flatten().map(|batch| batch.len()), Some(1));
        assert!(matches!(outbox.take().now_or_never(), Some(None)), "and then it is over");
    }
}
