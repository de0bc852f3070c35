//! What a pool owns: one lock, the counts, the idle stack and the queue.
//!
//! Every open connection is in exactly one place: lent to a [`Conn`], in the idle stack, or with a task that repairs,
//! verifies or closes it. The counts say how many are where, so that "may another one be made" is one comparison.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx::postgres::PgConnection;
use tokio::runtime;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::cancel::Canceller;
use super::idle::{IdleStack, Worker};
use super::options::{Limits, PoolOptions, Reset};
use super::repair::Suspect;
use super::stats::{Stats, Totals};
use crate::companions::Companions;
use crate::connect::ConnectFailure;
use crate::question::Numbers;
use crate::role::Role;
use crate::sql::Known;
use crate::statement::{Flight, State};
use crate::tracker::{Returned, Session};
use crate::{Config, Pooler, Tracking};

/// So many connections that take long to repair do not count against `max`, so that a storm of cut-off statements leaves
/// room for others and still cannot pile up server processes.
pub(crate) const EXTRA: u32 = 4;

/// A connection and what is known of it. Boxed once, when it is made: it is handed around all the time.
pub(crate) struct Live {
    pub(crate) raw: PgConnection,
    pub(crate) session: Arc<Session>,
    /// Past this, it is closed when it comes back, or when the keeper finds it idle.
    pub(crate) expires: Instant,
    /// When it was last given back.
    pub(crate) last_used: Instant,
    /// When the server last said something on it.
    pub(crate) last_seen: Instant,
    pub(crate) uses: u64,
    /// The pool's generation in which it was last known to be alive.
    pub(crate) generation: u64,
    /// How many times the pool's cached plans had been found stale when its own were last made.
    pub(crate) plans: u64,
    /// How many statements were cut off on it since the server last forgot all that were prepared.
    pub(crate) cut_off: u32,
    /// Texts that were judged before.
    pub(crate) known: Known,
    /// What the questions on it are told apart by.
    pub(crate) numbers: Numbers,
    /// How many times types had been found stale when it was dialled: the driver never forgets one.
    pub(crate) types: u64,
    /// What it was when it was dialled, or last asked.
    pub(crate) role: Role,
}

/// What a connection has to be up to when it is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standard {
    pub(crate) generation: u64,
    pub(crate) plans: u64,
}

/// A caller in the queue.
type Waiter = oneshot::Sender<Result<Parcel, Refusal>>;

/// Why a caller is sent away before its time is up.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    Closed,
    /// The server will say the same next time.
    Dial(ConnectFailure),
}

/// A connection on its way to a caller. If the caller has gone meanwhile, it goes back.
pub(crate) struct Parcel {
    inner: Arc<Inner>,
    live: Option<Box<Live>>,
}

impl Parcel {
    pub(crate) fn open(mut self) -> Box<Live> {
        self.live.take().expect("a parcel is opened once")
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            self.inner.give_back(live, None, None);
        }
    }
}

/// The state behind the lock.
pub(crate) struct Core {
    pub(crate) limits: Limits,
    pub(crate) idle: IdleStack<Box<Live>>,
    waiters: BTreeMap<u64, Waiter>,
    next_ticket: u64,
    pub(crate) sessions: Vec<Weak<Session>>,
    pub(crate) in_use: u32,
    pub(crate) dialling: u32,
    pub(crate) repairing: u32,
    /// Of those repairing, the ones that somebody else may already have been let in for.
    pub(crate) slow: u32,
    /// Set aside for `sqlx()`, once it was called.
    pub(crate) reserved: u32,
    /// Counts the losses of links. A connection of an older generation is verified before its next use.
    pub(crate) generation: u64,
    pub(crate) plans: u64,
    /// Counts how often types were found stale. A connection with an older count is closed before its next use; each raise
    /// raises `plans`, which is what is looked at first.
    pub(crate) types: u64,
    /// The generation that began because a server was found to take no writes: a connection of an older one is asked for its
    /// role, since a server that was demoted gives signs of life.
    pub(crate) roles: u64,
    /// Until then no connection is dialled that nobody waits for: the server refused the last one for good.
    pub(crate) rests_until: Option<Instant>,
    /// How many dials in a row were refused for good.
    pub(crate) refused: u32,
    /// Whether the last attempt to dial failed: then one tries for all.
    pub(crate) down: bool,
    pub(crate) last_failure: Option<(ConnectFailure, Instant)>,
    pub(crate) closing: bool,
    /// Nobody has asked for a connection yet, and none is to be opened before.
    pub(crate) asleep: bool,
    pub(crate) totals: Totals,
    /// How long connections are held, smoothed, in seconds.
    held: f64,
}

/// The pool behind all its handles.
pub(crate) struct Inner {
    pub(crate) options: PoolOptions,
    pub(crate) config: Config,
    core: Mutex<Core>,
    /// None through a pooler, where process ids are strangers'.
    pub(crate) canceller: Option<Canceller>,
    /// Tells its texts from those of other pools, where a pooler keeps what was prepared for all of them.
    pub(crate) mark: u64,
    /// Once a pooler in between is known to follow prepared statements.
    pub(crate) pooler_follows: OnceLock<()>,
    pub(crate) companions: Companions,
    pub(crate) sqlx: OnceLock<PgPool>,
    /// Where connections are dialled, repaired and closed, whichever thread they are dropped on.
    pub(crate) runtime: runtime::Handle,
    /// Cancelled when the pool closes or is gone: ends the keeper, and dials that nobody waits for.
    pub(crate) ended: CancellationToken,
    /// Told whenever a connection of a closing pool has gone.
    pub(crate) gone: Notify,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("name", &self.options.name).finish_non_exhaustive()
    }
}

/// What there is for a caller.
pub(crate) enum Taken {
    Live(Box<Live>, Standard),
    Queued(u64, oneshot::Receiver<Result<Parcel, Refusal>>),
    /// Enough others wait.
    Shed,
    Closed,
}

impl Core {
    /// The most connections that may be in use or idle, for us.
    pub(crate) fn limit(&self) -> u32 {
        self.limits.max.saturating_sub(self.reserved).max(1)
    }

    /// Connections that count against the limit.
    fn claimed(&self) -> u32 {
        self.in_use + self.idle_count() + self.dialling + self.repairing - self.slow.min(EXTRA)
    }

    pub(crate) fn idle_count(&self) -> u32 {
        u32::try_from(self.idle.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn waiting(&self) -> u32 {
        u32::try_from(self.waiters.len()).unwrap_or(u32::MAX)
    }

    /// Whether one more would wait for others to give a connection back, and so many do already that none may.
    fn is_crowded(&self) -> bool {
        // Connections that are made, or may be, have a caller each.
        let room = self.limit().saturating_sub(self.in_use);
        self.limits.max_waiting.is_some_and(|most| self.waiting() >= most.saturating_add(room))
    }

    fn max_idle(&self) -> u32 {
        self.limits.max_idle.unwrap_or(u32::MAX).max(self.limits.min_idle)
    }

    /// How many more connections should be dialled now.
    fn dials_wanted(&self) -> u32 {
        if self.closing || self.asleep {
            return 0;
        }
        // One that is asked for a sign of life is about to be idle again, and one that is closed calls when it is gone.
        let soon = self.idle_count() + self.repairing - self.slow;
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        let short = if rests { 0 } else { self.limits.min_idle.saturating_sub(soon) };
        let mut wanted = self.waiting().max(short);
        if self.down {
            wanted = wanted.min(1);
        }
        wanted.saturating_sub(self.dialling).min(self.limit().saturating_sub(self.claimed()))
    }

    /// Whether a dial that failed should be tried again.
    pub(crate) fn dial_is_wanted(&self) -> bool {
        !self.closing
            && (!self.waiters.is_empty() || self.idle_count() < self.limits.min_idle)
            && self.claimed() <= self.limit()
    }

    /// Notes that a caller got a connection after so long in the queue.
    pub(crate) fn note_wait(&mut self, waited: Duration) -> Standard {
        self.totals.acquired += 1;
        self.totals.queued += 1;
        self.totals.queue_wait += waited;
        self.standard()
    }

    fn loan_ended(&mut self, returned: Option<&Returned>) {
        self.in_use -= 1;
        if let Some(returned) = returned {
            self.held = 0.9f64.mul_add(self.held, 0.1 * returned.held.as_secs_f64());
            self.totals.leaks_returned += u64::from(returned.leaked);
        }
    }

    pub(crate) fn standard(&self) -> Standard {
        Standard { generation: self.generation, plans: self.plans }
    }

    pub(crate) fn leave_queue(&mut self, ticket: u64) {
        self.waiters.remove(&ticket);
    }

    /// Empties the queue.
    pub(crate) fn dismiss(&mut self) -> Vec<Waiter> {
        std::mem::take(&mut self.waiters).into_values().collect()
    }

    /// What a caller may be told about when to come again: how long the queue takes, judged by recent uses.
    pub(crate) fn turn_comes_in(&self) -> Duration {
        let seconds = self.held * f64::from(self.waiting() + 1) / f64::from(self.limit());
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            max: self.limits.max,
            open: self.in_use + self.idle_count() + self.repairing,
            idle: self.idle_count(),
            in_use: self.in_use,
            repairing: self.repairing,
            dialling: self.dialling,
            waiting: self.waiting(),
            totals: self.totals,
        }
    }

    /// The sessions that are still there.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = Arc<Session>> {
        self.sessions.iter().filter_map(Weak::upgrade)
    }
}

impl Inner {
    pub(crate) fn new(config: Config, options: PoolOptions) -> Self {
        let limits = options.limits();
        let runtime = runtime::Handle::current();
        Self {
            canceller: (config.pooler() == Pooler::None)
                .then(|| Canceller::start(&config, &options.name, options.keepalive, &runtime)),
            mark: fastrand::u64(..),
            pooler_follows: OnceLock::new(),
            options,
            config,
            core: Mutex::new(Core {
                limits,
                idle: IdleStack::default(),
                waiters: BTreeMap::new(),
                next_ticket: 0,
                sessions: Vec::new(),
                in_use: 0,
                dialling: 0,
                repairing: 0,
                slow: 0,
                reserved: 0,
                generation: 0,
                plans: 0,
                types: 0,
                roles: 0,
                rests_until: None,
                refused: 0,
                down: false,
                last_failure: None,
                closing: false,
                asleep: false,
                totals: Totals::default(),
                held: 0.0,
            }),
            companions: Companions::default(),
            sqlx: OnceLock::new(),
            runtime,
            ended: CancellationToken::new(),
            gone: Notify::new(),
        }
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        // The counts are consistent between statements: a panic elsewhere does not spoil them.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection given back last, or a place in the queue. Who has just thrown a bad connection away has made room, and is
    /// not turned away.
    pub(crate) fn take(self: &Arc<Self>) -> Taken {
        let mut core = self.core();
        if core.closing {
            return Taken::Closed;
        }
        core.asleep = false;
        if let Some(live) = core.idle.pop(Worker::here()) {
            core.in_use += 1;
            core.totals.acquired += 1;
            let standard = core.standard();
            return Taken::Live(live, standard);
        }
        if core.is_crowded() {
            core.totals.shed += 1;
            return Taken::Shed;
        }
        let (sender, receiver) = oneshot::channel();
        let ticket = core.next_ticket;
        core.next_ticket += 1;
        core.waiters.insert(ticket, sender);
        drop(core);
        self.dial_if_wanted();
        Taken::Queued(ticket, receiver)
    }

    /// Takes back a connection that is clean, and says goodbye to the loan. It was used, or never got to who asked for it.
    pub(crate) fn give_back(
        self: &Arc<Self>,
        mut live: Box<Live>,
        returned: Option<&Returned>,
        used: Option<Instant>,
    ) {
        if let Some(now) = used {
            live.last_used = now;
            live.uses += 1;
        }
        let now = used.unwrap_or_else(Instant::now);
        let mut core = self.core();
        core.loan_ended(returned);
        self.place(core, live, now);
    }

    /// Finds a place for a connection that is known to be good: with who has waited longest, in the idle stack, or,
    /// when it is one too many or too old, none.
    pub(crate) fn place<'a>(
        self: &'a Arc<Self>,
        mut core: MutexGuard<'a, Core>,
        mut live: Box<Live>,
        now: Instant,
    ) {
        loop {
            // A new one serves once at least: with a limit of zero, one would be dialled after the other for nobody.
            let worn = live.uses > 0
                && (live.expires <= now || self.options.max_uses.is_some_and(|most| live.uses >= most));
            if core.closing || worn || core.in_use + core.idle_count() >= core.limit() {
                return self.retire(core, live);
            }
            let Some((_, waiter)) = core.waiters.pop_first() else {
                if core.idle_count() >= core.max_idle() {
                    return self.retire(core, live);
                }
                core.idle.push(Worker::here(), live);
                return;
            };
            core.in_use += 1;
            drop(core);
            // Outside of the lock: it wakes somebody.
            match waiter.send(Ok(Parcel { inner: Arc::clone(self), live: Some(live) })) {
                Ok(()) => return,
                // Has gone in this moment, so the next one is asked.
                Err(parcel) => live = parcel.expect("what was sent").open(),
            }
            core = self.core();
            core.in_use -= 1;
        }
    }

    /// Closes a connection in the background. It counts until that is done.
    fn retire(self: &Arc<Self>, mut core: MutexGuard<'_, Core>, live: Box<Live>) {
        core.repairing += 1;
        drop(core);
        self.runtime.spawn(Suspect::new(Arc::clone(self), live).close());
    }

    /// Notes that a link was lost. The first loss in a generation begins the next one: all idle connections are verified,
    /// at the same time, and those that are out before their next use.
    pub(crate) fn lost(self: &Arc<Self>, generation: u64) {
        let mut core = self.core();
        core.totals.lost += 1;
        let mut doubtful = Vec::new();
        let is_first = core.generation == generation;
        if is_first {
            core.generation += 1;
            let all = core.idle.len();
            doubtful = core.idle.drain(all);
            core.repairing += u32::try_from(doubtful.len()).unwrap_or(u32::MAX);
        }
        drop(core);
        for live in doubtful {
            self.runtime.spawn(Suspect::new(Arc::clone(self), live).verify());
        }
        if is_first && let Some(canceller) = &self.canceller {
            canceller.look();
        }
        self.dial_if_wanted();
    }

    /// Notes that a server takes no writes any more, found on a connection of that generation that could write before. The first
    /// one begins the next generation: all others are asked for their role before their next use.
    pub(crate) fn demoted(self: &Arc<Self>, generation: u64) {
        let mut core = self.core();
        if generation < core.roles {
            return;
        }
        core.generation += 1;
        core.roles = core.generation;
        let all = core.idle.len();
        let doubtful = core.idle.drain(all);
        core.repairing += u32::try_from(doubtful.len()).unwrap_or(u32::MAX);
        drop(core);
        tracing::warn!(pool = self.options.name, to = %self.config, "a server takes no writes any more, and all connections are asked");
        for live in doubtful {
            self.runtime.spawn(Suspect::new(Arc::clone(self), live).verify());
        }
    }

    /// Drops a connection whose link is lost, which was in use. A statement that was under way may go on at the server, which
    /// has not noticed: its session is ended, and counts until then.
    pub(crate) fn discard(self: &Arc<Self>, live: Box<Live>, returned: Option<&Returned>, state: State) {
        let generation = live.generation;
        // A commit is left to end as it may.
        let goes_on = matches!(state.in_flight(), Some(Flight::Statement | Flight::Lent | Flight::Copy))
            && self.canceller.is_some();
        let orphan = goes_on.then(|| Arc::clone(&live.session));
        drop(live);
        let mut core = self.core();
        core.loan_ended(returned);
        core.repairing += u32::from(orphan.is_some());
        core.slow += u32::from(orphan.is_some());
        drop(core);
        if let Some(session) = orphan {
            // Not under the lock: a runtime that has ended drops the task at once.
            self.runtime.spawn(Suspect::without_link(Arc::clone(self)).end(session, state.doubt));
        }
        self.gone.notify_waiters();
        self.lost(generation);
    }

    /// Hands a connection that was in use, and whose state is not known, to a task of its own.
    pub(crate) fn repair(self: &Arc<Self>, mut live: Box<Live>, returned: Option<&Returned>, state: State) {
        live.last_used = Instant::now();
        live.uses += 1;
        let mut core = self.core();
        core.loan_ended(returned);
        core.repairing += 1;
        drop(core);
        self.runtime.spawn(Suspect::new(Arc::clone(self), live).repair(state));
    }

    /// Notes that a cached plan was stale: every connection forgets its own before its next use.
    pub(crate) fn plans_are_stale(&self) -> u64 {
        let mut core = self.core();
        core.totals.stale_plans += 1;
        core.plans += 1;
        core.plans
    }

    /// Notes that a type was stale on a connection with that count: every one that is as old is closed before its next use.
    pub(crate) fn types_are_stale(self: &Arc<Self>, types: u64) {
        let mut core = self.core();
        if core.types != types {
            return;
        }
        core.types += 1;
        core.plans += 1;
        let all = core.idle.len();
        let stale = core.idle.drain(all);
        core.repairing += u32::try_from(stale.len()).unwrap_or(u32::MAX);
        drop(core);
        for live in stale {
            self.runtime.spawn(Suspect::new(Arc::clone(self), live).close());
        }
    }

    /// Sets connections aside for sqlx's own pool, and says how many that may have.
    pub(crate) fn reserve(&self) -> u32 {
        let mut core = self.core();
        core.reserved = self.options.sqlx_reserve.clamp(1, core.limits.max.max(2) - 1);
        core.reserved
    }

    pub(crate) fn max_sessions(&self) -> u32 {
        let core = self.core();
        core.limit()
            .saturating_add(core.reserved)
            .saturating_add(EXTRA)
            .saturating_add(u32::from(self.canceller.is_some()))
    }

    /// Closes idle connections above the limits.
    pub(crate) fn trim(self: &Arc<Self>) {
        let mut core = self.core();
        let idle = core.idle_count();
        let over =
            (core.in_use + idle).saturating_sub(core.limit()).max(idle.saturating_sub(core.max_idle()));
        let over = over.min(idle);
        let spare = core.idle.drain(over as usize);
        core.repairing += over;
        drop(core);
        for live in spare {
            self.runtime.spawn(Suspect::new(Arc::clone(self), live).close());
        }
    }

    pub(crate) fn dial_if_wanted(self: &Arc<Self>) {
        let mut core = self.core();
        let wanted = core.dials_wanted();
        core.dialling += wanted;
        drop(core);
        for _ in 0..wanted {
            super::dial::spawn(self);
        }
    }

    /// Sends away everybody who waits.
    pub(crate) fn refuse_all(&self, refusal: &Refusal) {
        let waiters = self.core().dismiss();
        for waiter in waiters {
            // Who has gone needs no answer.
            let _: Result<_, _> = waiter.send(Err(refusal.clone()));
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
