//! What the handle of a bus shares with its two tasks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::deliver::{GapReason, Routes};
use crate::options::BusOptions;
use crate::outbox::Outbox;
use crate::state::{Condition, Counters};

pub(crate) struct BusShared {
    pub(crate) routes: Arc<Routes>,
    pub(crate) outbox: Outbox,
    pub(crate) closing: CancellationToken,
    pub(crate) condition: Condition,
    pub(crate) counters: Arc<Counters>,
    pub(crate) heartbeat: Duration,
    pub(crate) answer: Duration,
    pub(crate) pace: Duration,
    /// Whether the tasks were aborted before they had finished.
    pub(crate) aborted: AtomicBool,
}

impl BusShared {
    pub(crate) fn new(options: &BusOptions) -> Self {
        let observers = options.observers.iter().cloned().collect();
        let counters = Arc::new(Counters { observers, ..Counters::default() });
        Self {
            routes: Arc::new(Routes::new(Arc::clone(&counters))),
            outbox: Outbox::new(options.queue_limit(), Arc::clone(&counters)),
            closing: CancellationToken::new(),
            condition: Condition::default(),
            counters,
            heartbeat: options.heartbeat,
            answer: options.answer,
            pace: options.pace,
            aborted: AtomicBool::new(false),
        }
    }

    /// No notification arrives any more: all subscriptions end.
    pub(crate) fn stop_listening(&self) {
        self.condition.lost();
        self.routes.close();
    }

    /// Puts a gap into the queue of each subscription.
    pub(crate) fn gap(&self, reason: GapReason) {
        self.counters.gaps.add(1);
        self.routes.gap(reason);
    }
}
