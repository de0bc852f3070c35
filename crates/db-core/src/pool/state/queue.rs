//! The queue of callers, first come, first served.

use std::collections::BTreeMap;

/// A caller's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Waiters by ticket. Tickets are numbered in order.
#[derive(Debug)]
pub(super) struct Queue<W> {
    waiters: BTreeMap<Ticket, W>,
    next: u64,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { waiters: BTreeMap::new(), next: 0 }
    }
}

impl<W> Queue<W> {
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.waiters.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(super) fn push(&mut self, waiter: W) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiters.insert(ticket, waiter);
        ticket
    }

    /// Takes the waiter that has waited longest.
    pub(super) fn pop(&mut self) -> Option<W> {
        self.waiters.pop_first().map(|(_, waiter)| waiter)
    }

    /// Removes a waiter, if it was not served yet.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        self.waiters.remove(&ticket);
    }

    /// Takes all waiters, in their order.
    pub(super) fn take_all(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiters).into_values().collect()
    }
}
