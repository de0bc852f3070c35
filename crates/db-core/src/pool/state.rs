//! The rules of a pool as a value: no lock, no clock, no tasks, no I/O.
//!
//! The [driver](super::driver) calls a method for each event, under its lock, and performs what the method returns after it
//! has let the lock go. Time and the worker are parameters. Taking an idle connection and giving it back allocate nothing.
//!
//! ```text
//!                    dialled            take
//!   Dialling ──────────────────▶ idle ────────▶ Checkout ─── lose ────▶ closed
//!                                 ▲  ▲            │    │                  ▲
//!                                 │  └─ give_back ┘    │ quarantine       │
//!                                 │                    ▼                  │
//!                                 └─── readmit ── Quarantined ─ released ─┘
//! ```
//!
//! Every open connection is in exactly one place: idle in this value, or outside of it with a [`Checkout`] or a
//! [`Quarantined`]. These tokens are the only means to move the counts. Where the drawing leads to idle, a waiter gets the
//! connection first, and a connection that is one too many is quarantined and closed instead.

use std::time::{Duration, Instant};

use crate::pool_options::{EXTRA, Limits};
use crate::stats::CloseReason;

mod answer;
mod count;
mod delay;
mod idle;
#[cfg(test)]
mod model;
mod queue;

pub(crate) use answer::{
    Actions, AfterFailure, Age, AtServer, Closing, Counts, Epochs, Joined, Loss, Place, Placed, Refused,
    Room, Standard, Take, Wear,
};
pub(crate) use count::{Checkout, Dialling, Quarantined};
use count::{Count, Dials, InUse, Repairs, SlowRepairs};
use delay::Delay;
use idle::IdleStack;
pub(crate) use idle::Worker;
pub(crate) use queue::{Lane, Ticket};
use queue::{Queue, Waiting};

/// After the server has refused a login permanently, the pool waits this long before it dials again for `min_idle`. The time doubles
/// with each refusal, up to 32 times. Callers may dial at any time.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// A caller looks no more often than this whether it has waited for too long.
const LOOK: Duration = Duration::from_millis(10);

/// A pool's connections and callers. `C` is a connection, `W` the means to answer a waiting caller.
#[derive(Debug)]
pub(crate) struct PoolState<C, W> {
    /// Elsewhere, as the waiters of the queue are.
    limits: Box<Limits>,
    /// Connections of the limit that are reserved for `sqlx()`.
    reserved: u32,
    idle: IdleStack<C>,
    queue: Queue<W>,
    delay: Box<Delay>,
    in_use: Count<InUse>,
    dialling: Count<Dials>,
    repairing: Count<Repairs>,
    slow: Count<SlowRepairs>,
    /// Connections dialled and connections gone since the beginning, to check the counts above.
    dialled: u64,
    closed: u64,
    epochs: Epochs,
    /// The last dial failed: until one succeeds, only one task dials.
    is_down: bool,
    /// Dials in a row that the server refused permanently.
    refusals: u32,
    /// No connection is dialled for `min_idle` before this time.
    paused_until: Option<Instant>,
    is_closing: bool,
    /// No connection is dialled for `min_idle` before the first caller.
    is_asleep: bool,
}

impl<C, W> PoolState<C, W> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits: Box::new(limits),
            reserved: 0,
            idle: IdleStack::default(),
            queue: Queue::default(),
            delay: Box::default(),
            in_use: Count::default(),
            dialling: Count::default(),
            repairing: Count::default(),
            slow: Count::default(),
            dialled: 0,
            closed: 0,
            epochs: Epochs::default(),
            is_down: false,
            refusals: 0,
            paused_until: None,
            is_closing: false,
            is_asleep: false,
        }
    }

    /// A caller wants a connection, and gets the most recently returned one.
    pub(crate) fn take(&mut self, worker: Worker, lane: Lane, now: Instant) -> Take<C> {
        if self.is_closing {
            return Take::Closed;
        }
        self.is_asleep = false;
        if let Some(conn) = self.idle.pop(worker) {
            if self.limits.queue_target.is_some() {
                self.delay.in_time(now);
            }
            return Take::Idle(conn, self.in_use.enter(), self.standard());
        }
        if self.is_shed(lane) { Take::Shed } else { Take::MayWait }
    }

    /// A caller that [may](Take::MayWait) joins the queue.
    pub(crate) fn wait(&mut self, waiter: W, lane: Lane, now: Instant) -> Joined<W> {
        let displaced = if self.is_crowded() { self.queue.pop_patient() } else { None };
        // The first callers have a connection dialled for them, as far as there is room.
        let room = if self.queue.len() < self.room() { Room::ToDial } else { Room::None };
        let ticket = self.queue.push(lane, waiter, now);
        Joined { ticket, room, displaced, dial: self.dials(now) }
    }

    /// Takes the callers that have waited for too long, if nobody got a connection in time for a whole interval.
    #[inline]
    pub(crate) fn take_late(&mut self, now: Instant) -> Vec<W> {
        // Most connections are given back while nobody waits.
        if self.queue.is_empty() { Vec::new() } else { self.take_late_waiters(now) }
    }

    fn take_late_waiters(&mut self, now: Instant) -> Vec<W> {
        let Some(target) = self.limits.queue_target else { return Vec::new() };
        let (interval, exempt) = (self.limits.queue_interval, self.dialable());
        if let Some(since) = self.queue.oldest(exempt) {
            self.delay.waits(since, now, target, interval);
        }
        if !self.delay.is_long(now, interval) {
            return Vec::new();
        }
        self.queue.take_since(exempt, |lane| now.checked_sub(patience(lane, target)))
    }

    /// When a caller that has waited since `since` should look whether it has waited for too long; `None` if it never has.
    pub(crate) fn look_at(&self, lane: Lane, since: Instant, now: Instant) -> Option<Instant> {
        let target = self.limits.queue_target?;
        let own = since.checked_add(patience(lane, target))?;
        let next = own.max(self.delay.long_at(now, self.limits.queue_interval)?);
        if next > now {
            return Some(next);
        }
        // It has waited for long enough, and has a connection dialled for it at the moment.
        now.checked_add(target.max(LOOK))
    }

    /// Whether a caller would be refused if it came now. `wait` estimates how long it would wait behind this number of callers.
    pub(crate) fn would_refuse(
        &self,
        lane: Lane,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Option<Refused> {
        if self.is_closing {
            return Some(Refused::Closed);
        }
        if self.idle.len() > 0 {
            return None;
        }
        if self.is_shed(lane) {
            return Some(Refused::Shed);
        }
        let patience = patience(lane, self.limits.queue_target?);
        let is_late = self.delay.is_long(now, self.limits.queue_interval)
            && self.queue.len() >= self.dialable()
            && wait(self.queue.ahead_of(lane)) > patience;
        is_late.then_some(Refused::Late)
    }

    /// A caller waits no longer, whether it was answered or gave up.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.queue.remove(ticket);
    }

    /// A connection is returned clean, or the caller it was handed to is gone.
    pub(crate) fn give_back(
        &mut self,
        conn: C,
        checkout: Checkout,
        wear: Wear,
        worker: Worker,
        now: Instant,
    ) -> Placed<C, W> {
        let late = self.take_late(now);
        self.in_use.leave(checkout);
        Placed { place: self.place(conn, wear, worker, now, false), late }
    }

    /// A connection is returned in an unknown state.
    pub(crate) fn quarantine(&mut self, checkout: Checkout) -> Quarantined {
        self.in_use.leave(checkout);
        self.isolated()
    }

    /// A connection in use has lost its link. `generation` is the connection's.
    pub(crate) fn lose(
        &mut self,
        checkout: Checkout,
        generation: u64,
        at_server: AtServer,
        now: Instant,
    ) -> Loss<C, W> {
        self.in_use.leave(checkout);
        let orphan = match at_server {
            AtServer::Nothing => {
                self.closed += 1;
                None
            }
            // Its slot is free for callers at once.
            AtServer::Statement => {
                Some(Quarantined { repair: self.repairing.enter(), slow: Some(self.slow.enter()) })
            }
        };
        Loss { orphan, ..self.link_lost(generation, now) }
    }

    /// A quarantined connection has lost its link. `generation` is the connection's.
    pub(crate) fn lose_quarantined(
        &mut self,
        quarantined: Quarantined,
        generation: u64,
        now: Instant,
    ) -> Loss<C, W> {
        self.end_quarantine(quarantined);
        self.closed += 1;
        self.link_lost(generation, now)
    }

    /// The first loss in a generation starts the next: all idle connections are pinged at the same time, and those in use before
    /// their next use.
    fn link_lost(&mut self, generation: u64, now: Instant) -> Loss<C, W> {
        let is_news = self.epochs.generation == generation;
        let mut actions = Actions::default();
        if is_news {
            self.epochs.generation += 1;
            actions.verify = self.isolate_idle(usize::MAX);
        }
        actions.dial = self.dials(now);
        Loss { orphan: None, is_news, actions }
    }

    /// A repair takes long: another connection may be dialled in its place.
    pub(crate) fn mark_slow(&mut self, quarantined: &mut Quarantined, now: Instant) -> Vec<Dialling> {
        if quarantined.slow.is_none() {
            quarantined.slow = Some(self.slow.enter());
        }
        self.dials(now)
    }

    /// A quarantined connection is known to be good again.
    pub(crate) fn readmit(
        &mut self,
        quarantined: Quarantined,
        conn: C,
        wear: Wear,
        worker: Worker,
        now: Instant,
    ) -> (Placed<C, W>, Vec<Dialling>) {
        let late = self.take_late(now);
        self.end_quarantine(quarantined);
        let place = self.place(conn, wear, worker, now, false);
        (Placed { place, late }, self.dials(now))
    }

    /// A quarantined connection is closed, and its session ended as far as possible.
    pub(crate) fn released(&mut self, quarantined: Quarantined, now: Instant) -> Vec<Dialling> {
        self.end_quarantine(quarantined);
        self.closed += 1;
        self.dials(now)
    }

    /// A dial succeeded.
    pub(crate) fn dialled(
        &mut self,
        dialling: Dialling,
        conn: C,
        worker: Worker,
        now: Instant,
    ) -> (Placed<C, W>, Vec<Dialling>) {
        let late = self.take_late(now);
        self.dialling.leave(dialling);
        self.dialled += 1;
        self.is_down = false;
        self.refusals = 0;
        self.paused_until = None;
        // The server is reachable, so the other dials may start again.
        let place = self.place(conn, Wear::Usable, worker, now, true);
        (Placed { place, late }, self.dials(now))
    }

    /// A dial failed. One dial tries again for all callers. `is_final`: the server would refuse the retry, too.
    pub(crate) fn dial_failed(
        &mut self,
        dialling: Dialling,
        is_final: bool,
        now: Instant,
    ) -> AfterFailure<W> {
        self.is_down = true;
        if is_final {
            let pause = REFUSAL_PAUSE.saturating_mul(1 << self.refusals.min(5));
            self.refusals = self.refusals.saturating_add(1);
            self.paused_until = Some(now + pause);
        }
        if !is_final && self.dialling.get() == 1 && self.is_dial_wanted() {
            return AfterFailure::Retry(dialling);
        }
        self.dialling.leave(dialling);
        // Connections in use or in repair may be returned, so callers keep waiting for them.
        let refuses_all = is_final && self.in_use.get() + self.repairing.get() == 0;
        AfterFailure::Stop(if refuses_all { self.queue.take_all() } else { Vec::new() })
    }

    /// The pause after a failed dial is over. Returns the token if the dial is still wanted.
    ///
    /// This is one step: a caller that joins the queue before it counts on this dial, and one that joins after it starts another.
    pub(crate) fn pause_ended(&mut self, dialling: Dialling) -> Option<Dialling> {
        if self.is_dial_wanted() {
            return Some(dialling);
        }
        self.dialling.leave(dialling);
        None
    }

    /// A dial ends without an answer.
    pub(crate) fn dial_dropped(&mut self, dialling: Dialling) {
        self.dialling.leave(dialling);
    }

    /// The limits change. Idle connections above them are closed.
    pub(crate) fn set_limits(&mut self, limits: Limits, now: Instant) -> Actions<C, W> {
        *self.limits = limits;
        Actions { close: self.trim(), dial: self.dials(now), ..Actions::default() }
    }

    /// `sqlx()` is called for the first time: reserves this number of connections for it, at least 1, and never the whole limit.
    /// Returns the number.
    pub(crate) fn reserve(&mut self, connections: u32) -> (u32, Actions<C, W>) {
        self.reserved = connections.clamp(1, self.limits.max.max(2) - 1);
        (self.reserved, Actions { close: self.trim(), ..Actions::default() })
    }

    /// A server that accepted writes refuses them now, found on a connection of this generation. The first such report starts the next
    /// generation; for later ones, this is `None`.
    pub(crate) fn demoted(&mut self, generation: u64) -> Option<Actions<C, W>> {
        if generation < self.epochs.roles {
            return None;
        }
        self.epochs.generation += 1;
        self.epochs.roles = self.epochs.generation;
        Some(Actions { verify: self.isolate_idle(usize::MAX), ..Actions::default() })
    }

    /// A cached plan was stale. Returns the new count.
    pub(crate) fn plans_stale(&mut self) -> u64 {
        self.epochs.plans += 1;
        self.epochs.plans
    }

    /// A type was stale on a connection with this count. Every connection of that count or older is closed before its next use.
    pub(crate) fn types_stale(&mut self, types: u64) -> Actions<C, W> {
        if self.epochs.types != types {
            return Actions::default();
        }
        self.evict()
    }

    /// Every existing connection is closed before its next use.
    pub(crate) fn evict(&mut self) -> Actions<C, W> {
        self.epochs.types += 1;
        self.epochs.plans += 1;
        Actions { close: self.close_idle(usize::MAX, CloseReason::Evicted), ..Actions::default() }
    }

    /// Some time has passed: closes idle connections that are too old or too many, and pings those that were silent.
    pub(crate) fn time_passed(&mut self, now: Instant, age: impl Fn(&C) -> Age) -> Actions<C, W> {
        let idle = self.idle_count();
        let mut over = (self.in_use.get() + idle).saturating_sub(self.limit());
        let mut spare = idle.saturating_sub(self.limits.min_idle);
        // The connections that were not used for longest come first.
        let mut reasons = Vec::new();
        let close = self.idle.remove_unless(|conn| {
            let age = age(conn);
            let why = match age {
                _ if over > 0 => CloseReason::Limit,
                Age { is_expired: true, .. } => CloseReason::Lifetime,
                Age { is_unused: true, .. } if spare > 0 => CloseReason::Idle,
                _ => return true,
            };
            over = over.saturating_sub(1);
            spare = spare.saturating_sub(1);
            reasons.push(why);
            false
        });
        let close = close.into_iter().zip(reasons).map(|(conn, why)| self.closing(conn, why)).collect();
        let verify = self.idle.remove_unless(|conn| !age(conn).is_silent);
        Actions { close, verify: self.isolate(verify), dial: self.dials(now), ..Actions::default() }
    }

    /// Dials for `min_idle` now, even if the server has just refused a login.
    pub(crate) fn warm_up(&mut self, now: Instant) -> Vec<Dialling> {
        self.paused_until = None;
        self.dials(now)
    }

    /// Nothing is dialled before the first caller.
    pub(crate) fn sleep(&mut self) {
        self.is_asleep = true;
    }

    /// The pool closes: callers are refused, idle connections are closed at once, and all others when they are returned.
    pub(crate) fn close(&mut self) -> Actions<C, W> {
        self.is_closing = true;
        let refuse = self.queue.take_all();
        Actions { close: self.close_idle(usize::MAX, CloseReason::Shut), refuse, ..Actions::default() }
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits
    }

    /// The most connections that may be in use or idle, without those reserved for sqlx.
    pub(crate) fn limit(&self) -> u32 {
        self.limits.max.saturating_sub(self.reserved).max(1)
    }

    pub(crate) fn reserved(&self) -> u32 {
        self.reserved
    }

    pub(crate) fn epochs(&self) -> Epochs {
        self.epochs
    }

    pub(crate) fn standard(&self) -> Standard {
        Standard { generation: self.epochs.generation, plans: self.epochs.plans }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing
    }

    pub(crate) fn is_down(&self) -> bool {
        self.is_down
    }

    /// Whether the limit of connections in use is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.in_use.get() >= self.limit()
    }

    /// The number of ready connections, in use or idle, and the number that `min_idle` demands.
    pub(crate) fn ready_of_wanted(&self) -> (u32, u32) {
        (self.in_use.get() + self.idle_count(), self.limits.min_idle.min(self.limit()))
    }

    /// Whether there are no connections and no dials.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_use.get() + self.idle_count() + self.repairing.get() + self.dialling.get() == 0
    }

    pub(crate) fn counts(&self) -> Counts {
        let (in_use, idle, repairing) = (self.in_use.get(), self.idle_count(), self.repairing.get());
        Counts {
            open: in_use + idle + repairing,
            idle,
            in_use,
            repairing,
            dialling: self.dialling.get(),
            waiting: self.queue.len(),
        }
    }

    /// Whether the counts agree with the connections dialled and closed, and no caller waits while a connection is idle.
    pub(crate) fn is_consistent(&self) -> bool {
        let open = self.dialled.checked_sub(self.closed);
        open == Some(u64::from(self.counts().open))
            && self.slow.get() <= self.repairing.get()
            && (self.queue.is_empty() || self.idle.len() == 0)
    }

    /// `is_new`: the connection was dialled just now.
    fn place(&mut self, conn: C, wear: Wear, worker: Worker, now: Instant, is_new: bool) -> Place<C, W> {
        let idle = self.idle_count();
        let why = match wear {
            _ if self.is_closing => Some(CloseReason::Shut),
            Wear::WornOut(why) => Some(why),
            Wear::Usable => (self.in_use.get() + idle >= self.limit()).then_some(CloseReason::Limit),
        };
        if let Some(why) = why {
            return Place::Close(self.closing(conn, why));
        }
        if let Some(next) = self.queue.pop() {
            let Waiting { waiter, since } = next.waiting;
            // The wait for a dial says nothing of the queue.
            if !is_new {
                self.delay.served(since, now, &self.limits, next.has_overtaken);
            }
            return Place::Hand(waiter, conn, self.in_use.enter());
        }
        if idle >= self.max_idle() {
            return Place::Close(self.closing(conn, CloseReason::Limit));
        }
        self.idle.push(worker, conn);
        Place::Idle
    }

    /// Starts as many dials as are wanted and allowed.
    fn dials(&mut self, now: Instant) -> Vec<Dialling> {
        // Tokens are zero-sized, so this vector allocates nothing.
        (0..self.dials_wanted(now)).map(|_| self.dialling.enter()).collect()
    }

    fn dials_wanted(&self, now: Instant) -> u32 {
        if self.is_closing || self.is_asleep {
            return 0;
        }
        // A connection that is pinged will be idle again, and one that is closed calls `released` when it is gone.
        let soon = self.idle_count() + self.repairing.get() - self.slow.get();
        let is_paused = self.paused_until.is_some_and(|until| now < until);
        let short = if is_paused { 0 } else { self.limits.min_idle.saturating_sub(soon) };
        let mut wanted = self.queue.len().max(short);
        if self.is_down {
            wanted = wanted.min(1);
        }
        wanted.saturating_sub(self.dialling.get()).min(self.limit().saturating_sub(self.claimed()))
    }

    /// Whether a failed dial should try again.
    fn is_dial_wanted(&self) -> bool {
        !self.is_closing
            && (!self.queue.is_empty() || self.idle_count() < self.limits.min_idle)
            && self.claimed() <= self.limit()
    }

    /// Connections that count against the limit.
    fn claimed(&self) -> u32 {
        self.in_use.get() + self.idle_count() + self.dialling.get() + self.repairing.get()
            - self.slow.get().min(EXTRA)
    }

    /// The number of connections that may be dialled, or are.
    fn dialable(&self) -> u32 {
        self.limit().saturating_sub(self.claimed() - self.dialling.get())
    }

    /// The number of callers that have, or may have, a connection dialled for them.
    fn room(&self) -> u32 {
        self.limit().saturating_sub(self.in_use.get())
    }

    /// Whether another caller would wait for a returned connection, and `max_waiting` callers do so already.
    fn is_crowded(&self) -> bool {
        self.limits.max_waiting.is_some_and(|most| self.queue.len() >= most.saturating_add(self.room()))
    }

    /// Whether a caller is refused at once. Others than patient ones take the place of a patient one.
    fn is_shed(&self, lane: Lane) -> bool {
        self.is_crowded() && (lane == Lane::Patient || !self.queue.has_patient())
    }

    fn idle_count(&self) -> u32 {
        u32::try_from(self.idle.len()).unwrap_or(u32::MAX)
    }

    fn max_idle(&self) -> u32 {
        self.limits.max_idle.unwrap_or(u32::MAX).max(self.limits.min_idle)
    }

    /// Takes the idle connections above the limits out of use.
    fn trim(&mut self) -> Vec<Closing<C>> {
        let idle = self.idle_count();
        let over_limit = (self.in_use.get() + idle).saturating_sub(self.limit());
        let over = over_limit.max(idle.saturating_sub(self.max_idle()));
        self.close_idle(over as usize, CloseReason::Limit)
    }

    /// Takes this many idle connections out of use, to be closed.
    fn close_idle(&mut self, most: usize, why: CloseReason) -> Vec<Closing<C>> {
        let idle = self.isolate_idle(most);
        idle.into_iter().map(|(conn, quarantined)| Closing { conn, quarantined, why }).collect()
    }

    fn closing(&mut self, conn: C, why: CloseReason) -> Closing<C> {
        Closing { conn, quarantined: self.isolated(), why }
    }

    /// Takes this many idle connections out of use, the least recently used first.
    fn isolate_idle(&mut self, most: usize) -> Vec<(C, Quarantined)> {
        let idle = self.idle.drain(most.min(self.idle.len()));
        self.isolate(idle)
    }

    fn isolate(&mut self, conns: Vec<C>) -> Vec<(C, Quarantined)> {
        conns.into_iter().map(|conn| (conn, self.isolated())).collect()
    }

    fn isolated(&mut self) -> Quarantined {
        Quarantined { repair: self.repairing.enter(), slow: None }
    }

    fn end_quarantine(&mut self, Quarantined { repair, slow }: Quarantined) {
        self.repairing.leave(repair);
        if let Some(slow) = slow {
            self.slow.leave(slow);
        }
    }
}

/// How long a caller may wait while nobody is served in time: patient ones are refused first.
fn patience(lane: Lane, target: Duration) -> Duration {
    match lane {
        Lane::Urgent | Lane::Plain => target.saturating_mul(2),
        Lane::Patient => target,
    }
}
