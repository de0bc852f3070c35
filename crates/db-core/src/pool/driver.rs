//! The lock around a pool's [state](super::state), and the tasks that perform its actions. The list of sessions has a
//! [lock of its own](super::sessions).

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use sqlx::PgPool;
use tokio::runtime;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::cancel::Canceller;
use super::handoff::{Answer, Handoff, Refusal, Waiter};
use super::live::{CheckedOut, Live};
use super::quarantine::Quarantine;
use super::sessions::Sessions;
use super::state::{
    Actions, AtServer, Closing, Dialling, Joined, Lane, Loss, Place, Placed, PoolState, Refused, Room,
    Standard, Take, Ticket, Wear, Worker,
};
use crate::connect::ConnectFailure;
use crate::extensions::Extensions;
use crate::observer::{Observer, Retried};
use crate::observers::Observers;
use crate::pool_options::{EXTRA, Limits, PoolOptions, Reset, Tracking};
use crate::statement::{InFlight, State};
use crate::stats::{CloseReason, Stats, Totals};
use crate::tracker::{Caller, Returned};
use crate::{Class, Config, ErrorType, Pooler};

/// The most different errors by which repetitions are counted. Others count as conflicts.
const MOST_RETRIED: usize = 50;

/// What the lock protects: the state, and numbers for statistics and errors.
pub(crate) struct Core {
    pub(super) state: PoolState<Box<Live>, Waiter>,
    pub(super) totals: Totals,
    pub(super) last_failure: Option<(ConnectFailure, Instant)>,
    /// Repetitions of transactions. There are few errors for which a transaction is repeated.
    pub(super) retries: Vec<(ErrorType, u64)>,
    /// How long connections are held, as a moving average in seconds.
    held: f64,
}

/// The pool behind all its handles.
pub(crate) struct Driver {
    pub(crate) options: PoolOptions,
    pub(crate) config: Config,
    /// On lines of the processor's cache that it shares with nothing: what is changed under the lock wanders between the processors, and what
    /// is only read beside it must not wander with it.
    core: CachePadded<Mutex<Core>>,
    pub(super) sessions: Sessions,
    /// `None` through a pooler, where process ids are other clients'.
    pub(crate) canceller: Option<Canceller>,
    /// Makes the pool's statement texts differ from those of other pools: a pooler shares prepared statements between clients.
    pub(crate) mark: u64,
    /// A copy of the state's count of stale types and evictions, read for returned connections without the lock.
    types: AtomicU64,
    /// Set once the pooler is known to track prepared statements.
    pub(crate) pooler_checked: OnceLock<()>,
    pub(crate) extensions: Extensions,
    pub(crate) observers: Observers<dyn Observer>,
    pub(super) sqlx: OnceLock<PgPool>,
    /// The runtime that dials, repairs and closes connections, whichever thread drops them.
    pub(super) runtime: runtime::Handle,
    /// Cancelled when the pool is closed or dropped: ends the keeper and all dials.
    pub(super) ended: CancellationToken,
    /// Notified when a connection is gone or a dial has ended, for `close` and `warm_up`.
    pub(super) progress: Notify,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("name", &self.options.name).finish_non_exhaustive()
    }
}

/// What a caller gets.
pub(super) enum Taken {
    CheckedOut(CheckedOut, Standard),
    Queued(InQueue),
    /// `max_waiting` callers wait already.
    Shed,
    /// Nothing, since the caller's deadline had passed.
    Late,
    Closed,
}

/// A caller's place in the queue.
pub(super) struct InQueue {
    pub(super) ticket: Ticket,
    pub(super) answer: Answer,
    pub(super) room: Room,
    /// When it joined.
    pub(super) since: Instant,
    /// When it should look whether it has waited for too long.
    pub(super) look_at: Option<Instant>,
}

/// The held lock of a pool. In debug builds, the counts are checked when it is released.
pub(crate) struct Locked<'d>(MutexGuard<'d, Core>);

impl Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        debug_assert!(
            std::thread::panicking() || self.state.is_consistent(),
            "the counts disagree with what was dialled and closed: {:?}",
            self.state.counts()
        );
    }
}

impl Core {
    /// Notes that a caller got a connection after a wait, of which it waited this long for one that others used.
    pub(super) fn note_wait(&mut self, queued: Duration) -> Standard {
        self.totals.acquired += 1;
        self.totals.queued += 1;
        self.totals.queue_wait += queued;
        self.state.standard()
    }

    /// Notes that a caller has got no connection in time.
    pub(super) fn note_timeout(&mut self, caller: &Caller) {
        // A client may choose its deadline, and is no sign of trouble.
        if caller.is_late(Instant::now()) {
            self.totals.past_deadline += 1;
        } else {
            self.totals.timed_out += 1;
        }
    }

    fn note_return(&mut self, returned: Option<&Returned>) {
        if let Some(returned) = returned {
            self.held = 0.9f64.mul_add(self.held, 0.1 * returned.held.as_secs_f64());
            self.totals.leaks_returned += u64::from(returned.leaked);
        }
    }

    /// The time until a caller that joins the queue now gets a connection, estimated from recent checkouts.
    pub(super) fn queue_time(&self) -> Duration {
        self.wait_behind(self.state.counts().waiting)
    }

    /// The same for a caller behind this number of others.
    fn wait_behind(&self, waiting: u32) -> Duration {
        let seconds = self.held * (f64::from(waiting) + 1.0) / f64::from(self.state.limit());
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Whether a caller would be refused if it came now.
    pub(super) fn would_refuse(&self, lane: Lane) -> Option<Refused> {
        self.state.would_refuse(lane, Instant::now(), |ahead| self.wait_behind(ahead))
    }

    pub(super) fn stats(&self) -> Stats {
        let counts = self.state.counts();
        Stats {
            max: self.state.limits().max,
            open: counts.open,
            idle: counts.idle,
            in_use: counts.in_use,
            repairing: counts.repairing,
            dialling: counts.dialling,
            waiting: counts.waiting,
            totals: self.totals,
        }
    }
}

impl Driver {
    pub(super) fn new(config: Config, mut options: PoolOptions) -> Self {
        let runtime = runtime::Handle::current();
        let observers = std::mem::take(&mut options.observers).into_iter().collect();
        Self {
            canceller: (config.pooler() == Pooler::None)
                .then(|| Canceller::start(&config, &options.name, options.keepalive, &runtime)),
            mark: fastrand::u64(..),
            types: AtomicU64::new(0),
            pooler_checked: OnceLock::new(),
            core: CachePadded::new(Mutex::new(Core {
                state: PoolState::new(options.limits()),
                totals: Totals::default(),
                last_failure: None,
                retries: Vec::new(),
                held: 0.0,
            })),
            sessions: Sessions::default(),
            options,
            config,
            extensions: Extensions::default(),
            observers,
            sqlx: OnceLock::new(),
            runtime,
            ended: CancellationToken::new(),
            progress: Notify::new(),
        }
    }

    pub(super) fn core(&self) -> Locked<'_> {
        // The counts are consistent after each statement here, so a panic elsewhere does not corrupt them.
        Locked(self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Pops the most recently returned connection, or enqueues the caller. A caller that discarded a bad connection freed a slot, so
    /// it is never shed.
    pub(super) fn take(self: &Arc<Self>, caller: &Caller, now: Instant) -> Taken {
        let (worker, lane) = (Worker::here(), caller.lane);
        let mut core = self.core();
        if caller.is_late(now) {
            core.totals.past_deadline += 1;
            return Taken::Late;
        }
        match core.state.take(worker, lane, now) {
            Take::Idle(live, checkout, standard) => {
                core.totals.acquired += 1;
                Taken::CheckedOut(CheckedOut { live, checkout }, standard)
            }
            Take::MayWait => {
                let (waiter, answer) = oneshot::channel();
                let Joined { ticket, room, displaced, dial } = core.state.wait(waiter, lane, now);
                let look_at = core.state.look_at(lane, now, now);
                drop(core);
                refuse(displaced.into_iter().collect(), &Refusal::Shed);
                self.dial(dial);
                Taken::Queued(InQueue { ticket, answer, room, since: now, look_at })
            }
            Take::Shed => {
                core.totals.shed += 1;
                Taken::Shed
            }
            Take::Closed => Taken::Closed,
        }
    }

    /// Returns a clean connection and ends its checkout. `used` is `None` if the caller was gone before it got the connection.
    pub(crate) fn give_back(
        self: &Arc<Self>,
        out: CheckedOut,
        returned: Option<&Returned>,
        used: Option<Instant>,
    ) {
        let CheckedOut { mut live, checkout } = out;
        if let Some(now) = used {
            live.last_used = now;
            live.uses += 1;
        }
        let now = used.unwrap_or_else(Instant::now);
        let wear = self.wear(&live, now);
        let worker = Worker::here();
        let mut core = self.core();
        core.note_return(returned);
        core.totals.returned += u64::from(used.is_some());
        let placed = core.state.give_back(live, checkout, wear, worker, now);
        drop(core);
        self.put(placed, now);
    }

    /// Hands a connection in an unknown state to a task that repairs it.
    pub(crate) fn repair(self: &Arc<Self>, out: CheckedOut, returned: Option<&Returned>, state: State) {
        let CheckedOut { mut live, checkout } = out;
        live.last_used = Instant::now();
        live.uses += 1;
        let mut core = self.core();
        core.note_return(returned);
        let quarantined = core.state.quarantine(checkout);
        drop(core);
        self.runtime.spawn(Quarantine::new(self, live, quarantined, CloseReason::Repair).repair(state));
    }

    /// Drops a connection in use whose link is lost. The server may not have noticed, and may still run the statement: its session is
    /// ended, and counts until then.
    pub(crate) fn discard(self: &Arc<Self>, out: CheckedOut, returned: Option<&Returned>, state: State) {
        let CheckedOut { live, checkout } = out;
        let generation = live.generation;
        let session = Arc::clone(&live.session);
        drop(live);
        // A commit is never stopped.
        let may_go_on =
            matches!(state.in_flight(), Some(InFlight::Statement | InFlight::Lent | InFlight::Copy))
                && self.canceller.is_some();
        let at_server = if may_go_on { AtServer::Statement } else { AtServer::Nothing };
        let mut core = self.core();
        core.note_return(returned);
        let mut loss = core.state.lose(checkout, generation, at_server, Instant::now());
        core.totals.closed.count(CloseReason::Lost);
        drop(core);
        if let Some(orphan) = loss.orphan.take() {
            self.runtime.spawn(Quarantine::of_session(self, orphan).end(session, state.pending_hooks));
        }
        self.react(loss);
        self.observers.report(|observer| observer.closed(CloseReason::Lost));
    }

    /// Reacts to a lost link.
    pub(super) fn react(self: &Arc<Self>, loss: Loss<Box<Live>, Waiter>) {
        self.progress.notify_waiters();
        self.perform(loss.actions);
        if loss.is_news
            && let Some(canceller) = &self.canceller
        {
            canceller.check();
        }
    }

    /// Records that a server no longer accepts writes, found on a connection of this generation that could write before.
    pub(super) fn demoted(self: &Arc<Self>, generation: u64) {
        let news = self.core().state.demoted(generation);
        let Some(actions) = news else { return };
        tracing::warn!(pool = self.options.name, to = %self.config, "a server no longer accepts writes; all connections are checked");
        self.perform(actions);
    }

    /// Records that a transaction is repeated.
    pub(crate) fn retried(&self, retried: &Retried) {
        let mut core = self.core();
        core.totals.retries += 1;
        let is_known = core.retries.iter().any(|(error, _)| *error == retried.error);
        // A function of the database may raise any SQLSTATE.
        let error = if is_known || core.retries.len() < MOST_RETRIED {
            retried.error
        } else {
            Class::Conflict.into()
        };
        match core.retries.iter_mut().find(|(known, _)| *known == error) {
            Some((_, count)) => *count += 1,
            None => core.retries.push((error, 1)),
        }
        drop(core);
        self.observers.report(|observer| observer.retried(retried));
    }

    /// Records a statement that took longer than `slow_statement`.
    pub(crate) fn statement_was_slow(&self) {
        self.core().totals.slow += 1;
    }

    /// Records a commit whose outcome stays unknown.
    pub(crate) fn commit_unknown(&self) {
        self.core().totals.ambiguous += 1;
    }

    /// Records a stale cached plan: every connection forgets its plans before its next use.
    pub(crate) fn plans_are_stale(&self) -> u64 {
        let mut core = self.core();
        core.totals.stale_plans += 1;
        core.state.plans_stale()
    }

    /// Records a stale type on a connection with this count: every connection of that count or older is closed before its next use.
    pub(crate) fn types_are_stale(self: &Arc<Self>, types: u64) {
        self.close_all_with(|state| state.types_stale(types));
    }

    /// Closes idle connections now, and those in use when they come back.
    pub(super) fn evict(self: &Arc<Self>) {
        self.close_all_with(PoolState::evict);
    }

    fn close_all_with(
        self: &Arc<Self>,
        change: impl FnOnce(&mut PoolState<Box<Live>, Waiter>) -> Actions<Box<Live>, Waiter>,
    ) {
        let mut core = self.core();
        let actions = change(&mut core.state);
        self.types.store(core.state.epochs().types, Ordering::Relaxed);
        drop(core);
        self.perform(actions);
    }

    /// Pops the most recently returned connection, if one is idle.
    pub(super) fn take_idle(&self) -> Option<(CheckedOut, Standard)> {
        let mut core = self.core();
        let Take::Idle(live, checkout, standard) =
            core.state.take(Worker::here(), Lane::default(), Instant::now())
        else {
            return None;
        };
        core.totals.acquired += 1;
        Some((CheckedOut { live, checkout }, standard))
    }

    /// Refuses the callers that have waited for too long. Returns when one that has waited since `since` should look again.
    pub(super) fn refuse_late(&self, lane: Lane, since: Instant) -> Option<Instant> {
        let now = Instant::now();
        let mut core = self.core();
        let waiters = core.state.take_late(now);
        let next = core.state.look_at(lane, since, now);
        drop(core);
        refuse(waiters, &Refusal::Late);
        next
    }

    pub(super) fn set_limits(self: &Arc<Self>, limits: Limits) {
        let actions = self.core().state.set_limits(limits, Instant::now());
        self.perform(actions);
    }

    /// Reserves connections for sqlx's own pool, and returns their number.
    pub(super) fn reserve(self: &Arc<Self>) -> u32 {
        let (reserved, actions) = self.core().state.reserve(self.options.sqlx_reserve);
        self.perform(actions);
        reserved
    }

    pub(super) fn max_sessions(&self) -> u32 {
        let core = self.core();
        core.state
            .limit()
            .saturating_add(core.state.reserved())
            .saturating_add(EXTRA)
            .saturating_add(u32::from(self.canceller.is_some()))
    }

    /// Performs what the state returned. The lock must not be held: callers are woken here, and a runtime that has shut down drops a
    /// spawned task at once, which takes the lock.
    pub(super) fn perform(self: &Arc<Self>, actions: Actions<Box<Live>, Waiter>) {
        let Actions { close, verify, refuse: waiters, dial } = actions;
        refuse(waiters, &Refusal::Closed);
        for closing in close {
            self.close(closing);
        }
        for (live, quarantined) in verify {
            self.runtime.spawn(Quarantine::new(self, live, quarantined, CloseReason::Evicted).verify());
        }
        self.dial(dial);
    }

    pub(super) fn dial(self: &Arc<Self>, dials: Vec<Dialling>) {
        for dialling in dials {
            super::dial::spawn(self, dialling);
        }
    }

    /// Delivers a connection to its place, unless it is idle already. The lock must not be held, as in [`perform`](Self::perform).
    pub(super) fn put(self: &Arc<Self>, mut placed: Placed<Box<Live>, Waiter>, now: Instant) {
        loop {
            if !placed.late.is_empty() {
                refuse(placed.late, &Refusal::Late);
            }
            let (waiter, live, checkout) = match placed.place {
                Place::Idle => return,
                Place::Close(closing) => return self.close(closing),
                Place::Hand(waiter, live, checkout) => (waiter, live, checkout),
            };
            let Err(unsent) = waiter.send(Ok(Handoff::new(self, CheckedOut { live, checkout }))) else {
                return;
            };
            // The caller has just gone, so the next caller is served.
            let CheckedOut { live, checkout } = unsent.expect("the handoff that was not received").open();
            let wear = self.wear(&live, now);
            placed = self.core().state.give_back(live, checkout, wear, Worker::here(), now);
        }
    }

    fn close(self: &Arc<Self>, closing: Closing<Box<Live>>) {
        let Closing { conn, quarantined, why } = closing;
        self.runtime.spawn(Quarantine::new(self, conn, quarantined, why).close());
    }

    /// Whether a connection may be used again. A new connection is used at least once: otherwise a pool with a `max_uses` of zero
    /// would dial without end.
    pub(super) fn wear(&self, live: &Live, now: Instant) -> Wear {
        let is_used_up = || self.options.max_uses.is_some_and(|most| live.uses >= most);
        if live.types != self.types.load(Ordering::Relaxed) {
            Wear::WornOut(CloseReason::Evicted)
        } else if live.uses > 0 && live.expires <= now {
            Wear::WornOut(CloseReason::Lifetime)
        } else if live.uses > 0 && is_used_up() {
            Wear::WornOut(CloseReason::Uses)
        } else {
            Wear::Usable
        }
    }

    pub(crate) fn always_resets(&self) -> bool {
        self.options.reset == Reset::DiscardAll && !self.is_pooled()
    }

    /// Whether a pooler is in between.
    pub(crate) fn is_pooled(&self) -> bool {
        self.config.pooler() != Pooler::None
    }

    pub(crate) fn tracks(&self) -> bool {
        self.options.tracker != Tracking::Off
    }
}

/// Refuses waiting callers.
pub(super) fn refuse(waiters: Vec<Waiter>, refusal: &Refusal) {
    for waiter in waiters {
        // A caller that has gone needs no answer.
        let _: Result<_, _> = waiter.send(Err(refusal.clone()));
    }
}
