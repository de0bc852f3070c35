//! The queue of callers: three lanes, in each of which it is first come, first served.

use std::collections::BTreeMap;
use std::time::Instant;

/// How much a caller's wait matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lane {
    Urgent,
    #[default]
    Plain,
    Patient,
}

/// After this number of callers that others in lanes behind them let pass, the oldest of those others is served.
const PASSING: u32 = 3;

/// A caller's place in the queue. Numbers rise in the order in which callers joined, whatever their lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    number: u64,
    lane: Lane,
}

/// A caller in the queue.
#[derive(Debug)]
pub(super) struct Waiting<W> {
    pub(super) waiter: W,
    pub(super) since: Instant,
}

/// The caller to be served.
#[derive(Debug)]
pub(super) struct Next<W> {
    pub(super) waiting: Waiting<W>,
    /// Another caller has waited for longer.
    pub(super) has_overtaken: bool,
}

/// Waiting callers. After three that were served while others waited in lanes behind them, the oldest of those others is served; if it has come
/// later than the caller before whom it is served, the next turn is that of the oldest of all. So the caller that has waited for longest is
/// at most the fifth to be served, and nobody starves.
#[derive(Debug)]
pub(super) struct Queue<W> {
    /// The waiters in all lanes. Most returned connections find none, and look no further.
    len: u32,
    /// Elsewhere, so that the pool's lock protects few lines of the processor's cache: they wander between the processors.
    all: Box<Waiters<W>>,
}

#[derive(Debug)]
struct Waiters<W> {
    /// By number, the most urgent lane first.
    lanes: [BTreeMap<u64, Waiting<W>>; 3],
    next: u64,
    /// When the last one joined.
    last: Option<Instant>,
    /// How many were served since somebody of a lane behind them was.
    passed: u32,
    /// The last caller of a lane behind had come later than the one before whom it was served.
    owes_oldest: bool,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        let lanes = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
        Self { len: 0, all: Box::new(Waiters { lanes, next: 0, last: None, passed: 0, owes_oldest: false }) }
    }
}

impl<W> Queue<W> {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many callers would be served before one that joins this lane now, but for every fourth of the lanes behind it.
    pub(super) fn ahead_of(&self, lane: Lane) -> u32 {
        let ahead = self.all.lanes.iter().take(lane as usize + 1).map(BTreeMap::len).sum::<usize>();
        u32::try_from(ahead).unwrap_or(u32::MAX)
    }

    /// `now` may be a little earlier than that of the last one, whose clock was read before it got the lock.
    pub(super) fn push(&mut self, lane: Lane, waiter: W, now: Instant) -> Ticket {
        let since = self.all.last.map_or(now, |last| last.max(now));
        self.all.last = Some(since);
        let waiting = Waiting { waiter, since };
        let ticket = Ticket { number: self.all.next, lane };
        self.all.next += 1;
        self.all.lanes[lane as usize].insert(ticket.number, waiting);
        self.len += 1;
        ticket
    }

    /// Takes the waiter whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Next<W>> {
        if self.len == 0 {
            return None;
        }
        let first = self.all.lanes.iter().position(|lane| !lane.is_empty())?;
        let behind = self.oldest_of(first + 1);
        let (_, oldest) = self.oldest_of(first)?;
        let lane = match behind {
            _ if self.all.owes_oldest => oldest,
            Some((_, behind)) if self.all.passed >= PASSING => behind,
            _ => first,
        };
        if lane > first {
            self.all.passed = 0;
        } else if behind.is_some() {
            self.all.passed += 1;
        }
        let (number, waiting) = self.all.lanes[lane].pop_first()?;
        self.len -= 1;
        let has_overtaken = self.oldest_of(0).is_some_and(|(oldest, _)| oldest < number);
        self.all.owes_oldest = lane > first && has_overtaken;
        Some(Next { waiting, has_overtaken })
    }

    /// The lowest number in this lane and those behind it, and its lane.
    fn oldest_of(&self, first: usize) -> Option<(u64, usize)> {
        let lanes = self.all.lanes.iter().enumerate().skip(first);
        lanes.filter_map(|(lane, waiting)| Some((*waiting.first_key_value()?.0, lane))).min()
    }

    /// Removes a waiter, if it was not served yet.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let removed = self.all.lanes[ticket.lane as usize].remove(&ticket.number);
        self.len -= u32::from(removed.is_some());
    }

    /// Whether a patient caller waits.
    pub(super) fn has_patient(&self) -> bool {
        !self.all.lanes[Lane::Patient as usize].is_empty()
    }

    /// Takes the patient caller that joined last.
    pub(super) fn pop_patient(&mut self) -> Option<W> {
        let (_, last) = self.all.lanes[Lane::Patient as usize].pop_last()?;
        self.len -= 1;
        Some(last.waiter)
    }

    /// Since when the caller has waited that has waited for longest. The first `exempt` ones do not count.
    pub(super) fn oldest(&self, exempt: u32) -> Option<Instant> {
        let mut exempt = exempt as usize;
        let mut first = |lane: &BTreeMap<u64, Waiting<W>>| {
            let skipped = exempt.min(lane.len());
            exempt -= skipped;
            lane.values().nth(skipped).map(|waiting| waiting.since)
        };
        self.all.lanes.iter().filter_map(&mut first).min()
    }

    /// Takes the callers that have waited since the time for their lane, or before, but for the first `exempt` ones.
    pub(super) fn take_since(&mut self, exempt: u32, time_for: impl Fn(Lane) -> Option<Instant>) -> Vec<W> {
        let mut exempt = exempt as usize;
        let mut taken = Vec::new();
        for (lane, waiting) in [Lane::Urgent, Lane::Plain, Lane::Patient].into_iter().zip(&mut self.all.lanes)
        {
            let skipped = exempt.min(waiting.len());
            exempt -= skipped;
            let Some(time) = time_for(lane) else { continue };
            let is_late = |waiting: &&Waiting<W>| waiting.since <= time;
            let late = waiting.values().skip(skipped).take_while(is_late).count();
            let numbers: Vec<u64> = waiting.keys().skip(skipped).take(late).copied().collect();
            taken.extend(numbers.iter().filter_map(|number| Some(waiting.remove(number)?.waiter)));
        }
        self.len -= u32::try_from(taken.len()).unwrap_or(u32::MAX);
        taken
    }

    /// Takes all waiters, in the order in which they joined.
    pub(super) fn take_all(&mut self) -> Vec<W> {
        self.len = 0;
        let mut all = BTreeMap::new();
        for lane in &mut self.all.lanes {
            all.append(lane);
        }
        all.into_values().map(|waiting| waiting.waiter).collect()
    }
}
