//! Taking a connection, and explaining why there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Connection, SqlStr};
use tokio::time::error::Elapsed;
use tokio::time::{timeout, timeout_at};

use super::driver::{Driver, InQueue, Taken};
use super::handoff::{Answer, Refusal};
use super::live::{CheckedOut, Live};
use super::state::{Lane, Refused, Room, Standard, Ticket};
use super::{NEVER, PING_LIMIT, Shared};
use crate::Conn;
use crate::call_site::{At, CallSite};
use crate::error::{AcquireDetails, AcquireError, AcquirePhase};
use crate::observer::Acquired;
use crate::role::Role;
use crate::statement::InFlight;
use crate::stats::CloseReason;
use crate::tracker::{Caller, TaskKey};

/// The limit for a connection to forget its cached plans.
const FORGET_LIMIT: Duration = Duration::from_secs(1);

/// A place in the queue, given up when it is dropped without an answer.
struct Queued {
    driver: Arc<Driver>,
    ticket: Option<Ticket>,
    lane: Lane,
    since: Instant,
    look_at: Option<Instant>,
}

impl Queued {
    /// Waits for the answer at most for this time. An answered caller is not in the queue any more.
    async fn answer(
        mut self,
        mut answer: Answer,
        limit: Duration,
    ) -> Result<<Answer as Future>::Output, Elapsed> {
        let ends = Instant::now() + limit.min(NEVER);
        loop {
            // The pool refuses callers when it hands out connections. If it hands out none, they look for themselves.
            let until = self.look_at.map_or(ends, |look_at| look_at.min(ends));
            match timeout_at(until.into(), &mut answer).await {
                Ok(answer) => {
                    self.ticket = None;
                    return Ok(answer);
                }
                Err(elapsed) if until == ends => return Err(elapsed),
                Err(_) => self.look_at = self.driver.refuse_late(self.lane, self.since),
            }
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.driver.core().state.leave(ticket);
        }
    }
}

/// Takes a connection; with a `statement`, for that statement alone. An idle connection that needs no check is handed out at once.
/// Everything else is in a boxed future of its own, so that futures which take a connection stay small.
pub(crate) async fn acquire(
    inner: Arc<Shared>,
    caller: Caller,
    statement: Option<&SqlStr>,
) -> Result<Conn, AcquireError> {
    let started = Instant::now();
    let caller = caller.from(started);
    let (inner, next) = match inner.take(&caller, started) {
        Taken::CheckedOut(out, standard) => match lend(out, inner, caller, started, standard, statement) {
            Ok(conn) => return Ok(hand_out(conn, Acquired::default())),
            Err(conn) => (Arc::clone(conn.inner()), Next::Check(conn, standard)),
        },
        Taken::Queued(place) => {
            let next = Next::wait(&inner, caller, place);
            (inner, next)
        }
        Taken::Late => (inner, Next::GiveUp(AcquirePhase::PastDeadline)),
        Taken::Shed => (inner, Next::GiveUp(AcquirePhase::Shed)),
        Taken::Closed => (inner, Next::GiveUp(AcquirePhase::Closed)),
    };
    Box::pin(acquire_slow(inner, caller, started, next, statement)).await
}

/// Takes an idle connection, and neither waits for another caller nor has one dialled. Checks it first if needed, as [`acquire`] does.
pub(crate) async fn try_acquire(inner: Arc<Shared>, caller: Caller) -> Option<Conn> {
    let started = Instant::now();
    let caller = caller.from(started);
    let mut spent = Acquired::default();
    if caller.is_late(started) {
        return None;
    }
    while let Some((out, standard)) = inner.take_idle() {
        let checking = Instant::now();
        let mut conn = match lend(out, Arc::clone(&inner), caller, checking, standard, None) {
            Ok(conn) => return Some(hand_out(conn, spent)),
            Err(conn) => conn,
        };
        let left = caller.acquire_timeout.saturating_sub(started.elapsed());
        let is_ready = conn.make_ready(standard, left).await;
        spent.verify += checking.elapsed();
        if is_ready {
            conn.start_checkout(None);
            return Some(hand_out(conn, spent));
        }
        if left.is_zero() {
            // No other one would be asked, either.
            return None;
        }
    }
    None
}

fn hand_out(mut conn: Conn, waited: Acquired) -> Conn {
    conn.hand_out(&waited);
    conn
}

/// Creates a checkout of a connection. If the connection has to be checked first, the checkout comes as an error, and no statement
/// runs on it yet.
#[expect(clippy::result_large_err, reason = "the checkout itself, which moves on either way")]
fn lend(
    out: CheckedOut,
    inner: Arc<Shared>,
    caller: Caller,
    now: Instant,
    standard: Standard,
    statement: Option<&SqlStr>,
) -> Result<Conn, Conn> {
    if is_fit(&inner, &out, now, standard) {
        Ok(Conn::new(out, inner, caller, now, statement))
    } else {
        Err(Conn::new(out, inner, caller, now, None))
    }
}

/// Whether the connection may be handed out unchecked: its link and its plans are up to date.
fn is_fit(inner: &Driver, live: &Live, now: Instant, standard: Standard) -> bool {
    live.generation == standard.generation
        && live.plans == standard.plans
        && now.saturating_duration_since(live.last_seen) <= inner.options.ping_after
}

/// What has to be done before a connection can be handed out.
enum Next {
    Wait(Queued, Answer, Room),
    Check(Conn, Standard),
    GiveUp(AcquirePhase),
}

impl Next {
    fn wait(driver: &Arc<Driver>, caller: Caller, place: InQueue) -> Self {
        let InQueue { ticket, answer, room, since, look_at } = place;
        let queued =
            Queued { driver: Arc::clone(driver), ticket: Some(ticket), lane: caller.lane, since, look_at };
        Self::Wait(queued, answer, room)
    }
}

async fn acquire_slow(
    inner: Arc<Shared>,
    caller: Caller,
    started: Instant,
    mut next: Next,
    statement: Option<&SqlStr>,
) -> Result<Conn, AcquireError> {
    let inner = &inner;
    let give_up = |phase, failure| {
        let error = explain(inner, caller, started, phase, failure);
        inner.observers.report(|observer| observer.not_acquired(&error));
        Err(error)
    };
    let mut spent = Acquired::default();
    loop {
        let left = caller.acquire_timeout.saturating_sub(started.elapsed());
        // From here on, dropping the future returns the connection, or sends it to repair.
        let (mut conn, standard) = match next {
            Next::Check(conn, standard) => (conn, standard),
            Next::GiveUp(phase) => return give_up(phase, None),
            Next::Wait(queued, answer, room) => {
                let since = Instant::now();
                warn_of_nested_acquire(inner, caller);
                let out = match queued.answer(answer, left).await {
                    Ok(Ok(Ok(handoff))) => handoff.open(),
                    Ok(Ok(Err(Refusal::Dial(failure)))) => {
                        return give_up(AcquirePhase::Dial, Some(failure.to_string()));
                    }
                    Ok(Ok(Err(refusal @ (Refusal::Shed | Refusal::Late)))) => {
                        inner.core().totals.shed += 1;
                        let is_late = matches!(refusal, Refusal::Late);
                        return give_up(
                            if is_late { AcquirePhase::Overloaded } else { AcquirePhase::Shed },
                            None,
                        );
                    }
                    Ok(Ok(Err(Refusal::Closed)) | Err(_)) => return give_up(AcquirePhase::Closed, None),
                    Err(_) => {
                        inner.core().note_timeout(&caller);
                        return give_up(AcquirePhase::Queue, None);
                    }
                };
                let now = Instant::now();
                let waited = now - since;
                let dial = match room {
                    // Also if the first dials have failed.
                    Room::ToDial => waited,
                    Room::None if out.uses == 0 => out.dialled_in.min(waited),
                    Room::None => Duration::ZERO,
                };
                spent.dial += dial;
                let queued = waited.saturating_sub(dial);
                spent.queue += queued;
                let standard = inner.core().note_wait(queued);
                match lend(out, Arc::clone(inner), caller, now, standard, statement) {
                    Ok(conn) => return Ok(hand_out(conn, spent)),
                    Err(conn) => (conn, standard),
                }
            }
        };
        let left = caller.acquire_timeout.saturating_sub(started.elapsed());
        let checking = Instant::now();
        let is_ready = conn.make_ready(standard, left).await;
        spent.verify += checking.elapsed();
        if is_ready {
            conn.start_checkout(statement);
            return Ok(hand_out(conn, spent));
        }
        drop(conn);
        if started.elapsed() >= caller.acquire_timeout {
            inner.core().note_timeout(&caller);
            return give_up(AcquirePhase::Verify, None);
        }
        let now = Instant::now();
        next = match inner.take(&caller, now) {
            Taken::CheckedOut(out, standard) => {
                match lend(out, Arc::clone(inner), caller, now, standard, statement) {
                    Ok(conn) => return Ok(hand_out(conn, spent)),
                    Err(conn) => Next::Check(conn, standard),
                }
            }
            Taken::Queued(place) => Next::wait(inner, caller, place),
            Taken::Late => Next::GiveUp(AcquirePhase::PastDeadline),
            Taken::Shed => Next::GiveUp(AcquirePhase::Shed),
            Taken::Closed => Next::GiveUp(AcquirePhase::Closed),
        };
    }
}

impl Conn {
    /// Pings the connection, and makes it forget stale plans. Returns whether it may be handed out then.
    async fn make_ready(&mut self, standard: Standard, left: Duration) -> bool {
        let epochs = self.inner().core().state.epochs();
        let (live, state) = self.parts();
        if live.types != epochs.types {
            state.mark_useless(CloseReason::Evicted);
            return false;
        }
        let asks_role = live.generation < epochs.roles;
        let forget = live.plans != standard.plans;
        let limit = if forget { FORGET_LIMIT } else { PING_LIMIT }.min(left);
        state.begin(InFlight::Control);
        let answer = timeout(limit, async {
            if forget {
                live.raw.clear_cached_statements().await?;
            }
            if asks_role {
                return Role::ask(&mut live.raw).await;
            }
            live.raw.ping().await.map(|()| live.role)
        });
        match answer.await {
            Ok(Ok(role)) => {
                state.end(None);
                if role == Role::Withdrawn && live.role == Role::Writes {
                    state.mark_useless(CloseReason::Evicted);
                    return false;
                }
                live.role = role;
                live.last_seen = Instant::now();
                live.generation = standard.generation;
                live.plans = standard.plans;
                true
            }
            // The caller's time is up. The ping is still in flight, so the connection goes to repair.
            Err(_) if limit == left => false,
            _ => {
                state.mark_lost();
                false
            }
        }
    }
}

/// Logs that a task which holds a connection waits for another of the same pool: with enough such tasks, the pool deadlocks. Logged
/// when the wait begins, not when it fails.
fn warn_of_nested_acquire(inner: &Driver, caller: Caller) {
    if let Some(first) = taken_by_this_task(inner) {
        inner.core().totals.nested_acquires += 1;
        tracing::warn!(
            pool = inner.options.name,
            "{} waits for a connection while its task holds one that {} took: with every task doing so, the pool deadlocks",
            At(caller.at, caller.name),
            first,
        );
    }
}

/// Refuses a caller that would be refused if it came now.
pub(super) fn admit(inner: &Driver, caller: Caller) -> Result<(), AcquireError> {
    let mut core = inner.core();
    let phase = match core.would_refuse(caller.lane) {
        None => return Ok(()),
        Some(Refused::Closed) => AcquirePhase::Closed,
        Some(Refused::Shed) => AcquirePhase::Shed,
        Some(Refused::Late) => AcquirePhase::Overloaded,
    };
    core.totals.shed += u64::from(phase != AcquirePhase::Closed);
    drop(core);
    let error = explain(inner, caller, Instant::now(), phase, None);
    inner.observers.report(|observer| observer.not_acquired(&error));
    Err(error)
}

fn taken_by_this_task(inner: &Driver) -> Option<CallSite> {
    if !inner.tracks() {
        return None;
    }
    let here = TaskKey::here();
    inner.sessions.find(|session| session.acquired_by(here))
}

fn explain(
    inner: &Driver,
    caller: Caller,
    started: Instant,
    phase: AcquirePhase,
    failure: Option<String>,
) -> AcquireError {
    let now = Instant::now();
    let core = inner.core();
    let stats = core.stats();
    let last_failure = core
        .last_failure
        .as_ref()
        .map(|(failure, at)| (failure.to_string(), now.saturating_duration_since(*at)));
    let queue_time = core.queue_time();
    let is_full = core.state.is_full();
    drop(core);
    // A caller in the queue waits for a connection in use, or for a dial.
    let phase = match phase {
        AcquirePhase::Queue if !is_full => AcquirePhase::Dial,
        other => other,
    };
    let sessions = inner.sessions.all();
    let oldest = sessions
        .iter()
        .filter_map(|session| Some((session.since()?, session)))
        .min_by_key(|(since, _)| *since)
        .and_then(|(_, session)| session.holder(now));
    AcquireError::new(AcquireDetails {
        pool: inner.options.name.clone(),
        phase,
        waited: now - started,
        stats,
        at: caller.at,
        name: caller.name,
        oldest,
        own: taken_by_this_task(inner),
        is_past_deadline: caller.is_late(now)
            && !matches!(phase, AcquirePhase::Shed | AcquirePhase::Overloaded | AcquirePhase::Closed),
        last_failure: failure.map(|failure| (failure, Duration::ZERO)).or(last_failure),
        queue_time,
    })
}
