//! The one lock of a pool, and the tasks that perform what its [state](super::state) asks for.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::runtime;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::cancel::Canceller;
use super::handoff::{Answer, Handoff, Refusal, Waiter};
use super::live::{CheckedOut, Live};
use super::options::{Limits, PoolOptions, Reset};
use super::quarantine::Quarantine;
use super::state::{
    Actions, AtServer, Dialling, EXTRA, Loss, Place, PoolState, Quarantined, Standard, Take, Ticket, Wear,
    Worker,
};
use super::stats::{Stats, Totals};
use crate::companions::Companions;
use crate::connect::ConnectFailure;
use crate::statement::{Flight, State};
use crate::tracker::{Returned, Session};
use crate::{Config, Pooler, Tracking};

/// What is behind the lock: the state, and what is only counted or shown.
pub(crate) struct Core {
    pub(super) state: PoolState<Box<Live>, Waiter>,
    pub(super) totals: Totals,
    pub(super) sessions: Vec<Weak<Session>>,
    pub(super) last_failure: Option<(ConnectFailure, Instant)>,
    /// How long connections are held, smoothed, in seconds.
    held: f64,
}

/// The pool behind all its handles.
pub(crate) struct Driver {
    pub(crate) options: PoolOptions,
    pub(crate) config: Config,
    core: Mutex<Core>,
    /// `None` through a pooler, where process ids are other clients'.
    pub(crate) canceller: Option<Canceller>,
    /// Makes the pool's texts differ from those of other pools, where a pooler keeps what was prepared for all of them.
    pub(crate) mark: u64,
    /// The state's count of stale types and evictions, for connections that come back. Whether one may be used again is decided under the lock.
    types: AtomicU64,
    /// Set once a pooler in between is known to follow prepared statements.
    pub(crate) pooler_follows: OnceLock<()>,
    pub(crate) companions: Companions,
    pub(super) sqlx: OnceLock<PgPool>,
    /// Where connections are dialled, repaired and closed, whichever thread they are dropped on.
    pub(super) runtime: runtime::Handle,
    /// Cancelled when the pool closes or is gone: ends the keeper, and dials that nobody waits for.
    pub(super) ended: CancellationToken,
    /// Notified when a connection is gone or a dial has ended: closing and warming up wait for that.
    pub(super) progress: Notify,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("name", &self.options.name).finish_non_exhaustive()
    }
}

/// What there is for a caller.
pub(super) enum Taken {
    CheckedOut(CheckedOut, Standard),
    Queued(Ticket, Answer),
    /// `max_waiting` callers wait already.
    Shed,
    Closed,
}

/// The lock of a pool while it is held. In debug builds, the counts are checked when it is let go.
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
    /// Notes that a caller got a connection after this time in the queue.
    pub(super) fn note_wait(&mut self, waited: Duration) -> Standard {
        self.totals.acquired += 1;
        self.totals.queued += 1;
        self.totals.queue_wait += waited;
        self.state.standard()
    }

    fn note_return(&mut self, returned: Option<&Returned>) {
        if let Some(returned) = returned {
            self.held = 0.9f64.mul_add(self.held, 0.1 * returned.held.as_secs_f64());
            self.totals.leaks_returned += u64::from(returned.leaked);
        }
    }

    /// How long the queue takes, judged by recent uses: a caller that is refused is told to come again after this time.
    pub(super) fn turn_comes_in(&self) -> Duration {
        let waiting = self.state.counts().waiting;
        let seconds = self.held * f64::from(waiting + 1) / f64::from(self.state.limit());
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
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

    /// The sessions that are still there.
    pub(super) fn sessions(&self) -> impl Iterator<Item = Arc<Session>> {
        self.sessions.iter().filter_map(Weak::upgrade)
    }
}

impl Driver {
    pub(super) fn new(config: Config, options: PoolOptions) -> Self {
        let runtime = runtime::Handle::current();
        Self {
            canceller: (config.pooler() == Pooler::None)
                .then(|| Canceller::start(&config, &options.name, options.keepalive, &runtime)),
            mark: fastrand::u64(..),
            types: AtomicU64::new(0),
            pooler_follows: OnceLock::new(),
            core: Mutex::new(Core {
                state: PoolState::new(options.limits()),
                totals: Totals::default(),
                sessions: Vec::new(),
                last_failure: None,
                held: 0.0,
            }),
            options,
            config,
            companions: Companions::default(),
            sqlx: OnceLock::new(),
            runtime,
            ended: CancellationToken::new(),
            progress: Notify::new(),
        }
    }

    pub(super) fn core(&self) -> Locked<'_> {
        // The counts are consistent between statements: a panic elsewhere does not spoil them.
        Locked(self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection given back last, or a place in the queue. A caller that has discarded a bad connection has freed a slot, so
    /// it is not shed.
    pub(super) fn take(self: &Arc<Self>) -> Taken {
        let worker = Worker::here();
        let mut core = self.core();
        match core.state.take(worker) {
            Take::Idle(live, checkout, standard) => {
                core.totals.acquired += 1;
                Taken::CheckedOut(CheckedOut { live, checkout }, standard)
            }
            Take::MayWait => {
                let (waiter, answer) = oneshot::channel();
                let (ticket, dials) = core.state.wait(waiter, Instant::now());
                drop(core);
                self.dial(dials);
                Taken::Queued(ticket, answer)
            }
            Take::Shed => {
                core.totals.shed += 1;
                Taken::Shed
            }
            Take::Closed => Taken::Closed,
        }
    }

    /// Returns a clean connection and ends its loan. `used` is `None` if the caller had gone before it got the connection.
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
        let place = core.state.give_back(live, checkout, wear, worker);
        drop(core);
        self.put(place, now);
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
        self.runtime.spawn(Quarantine::new(self, live, quarantined).repair(state));
    }

    /// Drops a connection in use whose link is lost. A statement that was under way may go on at the server, which has not noticed:
    /// its session is ended, and counts until then.
    pub(crate) fn discard(self: &Arc<Self>, out: CheckedOut, returned: Option<&Returned>, state: State) {
        let CheckedOut { live, checkout } = out;
        let generation = live.generation;
        let session = Arc::clone(&live.session);
        drop(live);
        // A commit is left to end as it may.
        let may_go_on = matches!(state.in_flight(), Some(Flight::Statement | Flight::Lent | Flight::Copy))
            && self.canceller.is_some();
        let at_server = if may_go_on { AtServer::Statement } else { AtServer::Nothing };
        let mut core = self.core();
        core.note_return(returned);
        let mut loss = core.state.lose(checkout, generation, at_server, Instant::now());
        core.totals.lost += 1;
        drop(core);
        if let Some(orphan) = loss.orphan.take() {
            self.runtime.spawn(Quarantine::of_session(self, orphan).end(session, state.doubt));
        }
        self.react(loss);
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

    /// Notes that a server takes no writes any more, found on a connection of this generation that could write before.
    pub(super) fn demoted(self: &Arc<Self>, generation: u64) {
        let news = self.core().state.demoted(generation);
        let Some(actions) = news else { return };
        tracing::warn!(pool = self.options.name, to = %self.config, "a server takes no writes any more, and all connections are asked");
        self.perform(actions);
    }

    /// Notes that a cached plan was stale: every connection forgets its own before its next use.
    pub(crate) fn plans_are_stale(&self) -> u64 {
        let mut core = self.core();
        core.totals.stale_plans += 1;
        core.state.plans_stale()
    }

    /// Notes that a type was stale on a connection with this count: every connection that is as old is closed before its next use.
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

    /// The connection given back last, if one is idle.
    pub(super) fn take_idle(&self) -> Option<(CheckedOut, Standard)> {
        let mut core = self.core();
        let Take::Idle(live, checkout, standard) = core.state.take(Worker::here()) else { return None };
        core.totals.acquired += 1;
        Some((CheckedOut { live, checkout }, standard))
    }

    pub(super) fn set_limits(self: &Arc<Self>, limits: Limits) {
        let actions = self.core().state.set_limits(limits, Instant::now());
        self.perform(actions);
    }

    /// Sets connections aside for sqlx's own pool, and returns how many that may have.
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

    /// Performs what the state asks for. The lock is not held: callers are woken, and a runtime that has ended drops a task when it
    /// is spawned, which takes the lock.
    pub(super) fn perform(self: &Arc<Self>, actions: Actions<Box<Live>, Waiter>) {
        let Actions { close, verify, refuse: waiters, dial } = actions;
        refuse(waiters, &Refusal::Closed);
        for (live, quarantined) in close {
            self.close(live, quarantined);
        }
        for (live, quarantined) in verify {
            self.runtime.spawn(Quarantine::new(self, live, quarantined).verify());
        }
        self.dial(dial);
    }

    pub(super) fn dial(self: &Arc<Self>, dials: Vec<Dialling>) {
        for dialling in dials {
            super::dial::spawn(self, dialling);
        }
    }

    /// Puts a connection in its place, unless it is idle already. The lock is not held, as in [`perform`](Self::perform).
    pub(super) fn put(self: &Arc<Self>, mut place: Place<Box<Live>, Waiter>, now: Instant) {
        loop {
            let (waiter, live, checkout) = match place {
                Place::Idle => return,
                Place::Close(live, quarantined) => return self.close(live, quarantined),
                Place::Hand(waiter, live, checkout) => (waiter, live, checkout),
            };
            let Err(unsent) = waiter.send(Ok(Handoff::new(self, CheckedOut { live, checkout }))) else {
                return;
            };
            // The caller went away in this moment, so the next is asked.
            let CheckedOut { live, checkout } = unsent.expect("what was sent").open();
            let wear = self.wear(&live, now);
            place = self.core().state.give_back(live, checkout, wear, Worker::here());
        }
    }

    fn close(self: &Arc<Self>, live: Box<Live>, quarantined: Quarantined) {
        self.runtime.spawn(Quarantine::new(self, live, quarantined).close());
    }

    /// Whether a connection may be used again. A new one is used at least once: with a limit of zero, the pool would dial one after
    /// the other for nobody.
    pub(super) fn wear(&self, live: &Live, now: Instant) -> Wear {
        let is_used_up = || self.options.max_uses.is_some_and(|most| live.uses >= most);
        let is_evicted = live.types != self.types.load(Ordering::Relaxed);
        let is_worn = live.uses > 0 && (live.expires <= now || is_used_up());
        if is_worn || is_evicted { Wear::WornOut } else { Wear::Usable }
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

/// Refuses callers that wait.
pub(super) fn refuse(waiters: Vec<Waiter>, refusal: &Refusal) {
    for waiter in waiters {
        // A caller that has gone needs no answer.
        let _: Result<_, _> = waiter.send(Err(refusal.clone()));
    }
}
