//! Taking a connection, and saying why there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Connection, SqlStr};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::core::{Inner, Live, Parcel, Refusal, Standard, Taken};
use super::{PING_LIMIT, Shared};
use crate::Conn;
use crate::error::{AcquireError, AcquirePhase, Explained};
use crate::role::Role;
use crate::statement::Flight;
use crate::tracker::{Asker, CallSite, TaskKey};

/// Making a connection forget its cached plans takes no longer than this.
const FORGET_LIMIT: Duration = Duration::from_secs(1);

/// A place in the queue, given up when it is dropped.
struct Place {
    inner: Arc<Inner>,
    ticket: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.core().leave_queue(self.ticket);
    }
}

/// Takes a connection, for one statement if that is told. What is there and fit is handed out without more ado; everything else
/// is in a box of its own, so that futures which take a connection stay small.
pub(crate) async fn acquire(
    inner: Arc<Shared>,
    asker: Asker,
    statement: Option<&SqlStr>,
) -> Result<Conn, AcquireError> {
    let started = Instant::now();
    let (inner, next) = match inner.take() {
        Taken::Live(live, standard) => match lend(live, inner, asker, started, standard, statement) {
            Ok(conn) => return Ok(conn),
            Err(conn) => (Arc::clone(conn.inner()), Next::Doubtful(conn, standard)),
        },
        Taken::Queued(ticket, receiver) => {
            let place = Place { inner: Arc::clone(&**inner), ticket };
            (inner, Next::Wait(place, receiver))
        }
        Taken::Shed => (inner, Next::GiveUp(AcquirePhase::Shed)),
        Taken::Closed => (inner, Next::GiveUp(AcquirePhase::Closed)),
    };
    Box::pin(persevere(inner, asker, started, next, statement)).await
}

/// Lends a connection out. As an error if it is in doubt: then nothing runs on it yet.
fn lend(
    live: Box<Live>,
    inner: Arc<Shared>,
    asker: Asker,
    now: Instant,
    standard: Standard,
    statement: Option<&SqlStr>,
) -> Result<Conn, Conn> {
    if is_fit(&inner, &live, now, standard) {
        Ok(Conn::new(live, inner, asker, now, statement))
    } else {
        Err(Conn::new(live, inner, asker, now, None))
    }
}

/// Whether the connection may be handed out as it is: there is no doubt about its link or its plans.
fn is_fit(inner: &Inner, live: &Live, now: Instant, standard: Standard) -> bool {
    live.generation == standard.generation
        && live.plans == standard.plans
        && now.saturating_duration_since(live.last_seen) <= inner.options.ping_after
}

/// What has to be done before there is a connection.
enum Next {
    Wait(Place, oneshot::Receiver<Result<Parcel, Refusal>>),
    Doubtful(Conn, Standard),
    GiveUp(AcquirePhase),
}

async fn persevere(
    inner: Arc<Shared>,
    asker: Asker,
    started: Instant,
    mut next: Next,
    statement: Option<&SqlStr>,
) -> Result<Conn, AcquireError> {
    let inner = &inner;
    let give_up = |phase, failure| Err(explain(inner, asker, started, phase, failure));
    loop {
        let left = inner.options.acquire_timeout.saturating_sub(started.elapsed());
        // A connection is given back, or handed to repair, when the future is dropped from here on.
        let (mut conn, standard) = match next {
            Next::Doubtful(conn, standard) => (conn, standard),
            Next::GiveUp(phase) => return give_up(phase, None),
            Next::Wait(place, receiver) => {
                let queued = Instant::now();
                name_second_wait(inner, asker);
                let answer = timeout(left, receiver).await;
                // Before anything is explained: it tells how many more wait.
                drop(place);
                let live = match answer {
                    Ok(Ok(Ok(parcel))) => parcel.open(),
                    Ok(Ok(Err(Refusal::Dial(failure)))) => {
                        return give_up(AcquirePhase::Dial, Some(failure.to_string()));
                    }
                    Ok(Ok(Err(Refusal::Closed)) | Err(_)) => return give_up(AcquirePhase::Closed, None),
                    Err(_) => {
                        inner.core().totals.timed_out += 1;
                        return give_up(AcquirePhase::Queue, None);
                    }
                };
                let now = Instant::now();
                let standard = inner.core().note_wait(now - queued);
                match lend(live, Arc::clone(inner), asker, now, standard, statement) {
                    Ok(conn) => return Ok(conn),
                    Err(conn) => (conn, standard),
                }
            }
        };
        let left = inner.options.acquire_timeout.saturating_sub(started.elapsed());
        if conn.put_right(standard, left).await {
            conn.start_checkout(statement);
            return Ok(conn);
        }
        drop(conn);
        if started.elapsed() >= inner.options.acquire_timeout {
            inner.core().totals.timed_out += 1;
            return give_up(AcquirePhase::Verify, None);
        }
        next = match inner.take() {
            Taken::Live(live, standard) => {
                let now = Instant::now();
                match lend(live, Arc::clone(inner), asker, now, standard, statement) {
                    Ok(conn) => return Ok(conn),
                    Err(conn) => Next::Doubtful(conn, standard),
                }
            }
            Taken::Queued(ticket, receiver) => {
                Next::Wait(Place { inner: Arc::clone(&**inner), ticket }, receiver)
            }
            Taken::Shed => Next::GiveUp(AcquirePhase::Shed),
            Taken::Closed => Next::GiveUp(AcquirePhase::Closed),
        };
    }
}

impl Conn {
    /// Asks for a sign of life, and makes the connection forget plans that have become stale. Says whether it may be handed
    /// out then.
    async fn put_right(&mut self, standard: Standard, left: Duration) -> bool {
        let (types, roles) = {
            let core = self.inner().core();
            (core.types, core.roles)
        };
        let (live, state) = self.parts();
        if live.types != types {
            state.mark_useless();
            return false;
        }
        let asks_role = live.generation < roles;
        let forget = live.plans != standard.plans;
        let limit = if forget { FORGET_LIMIT } else { PING_LIMIT }.min(left);
        state.begin(Flight::Control);
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
                    state.mark_useless();
                    return false;
                }
                live.role = role;
                live.last_seen = Instant::now();
                live.generation = standard.generation;
                live.plans = standard.plans;
                true
            }
            // It was the caller's time that was up: still in flight, the connection goes to repair.
            Err(_) if limit == left => false,
            _ => {
                state.mark_lost();
                false
            }
        }
    }
}

/// A task that holds a connection and waits for another of the same pool may wait for itself. This is said when the wait
/// begins, not when it has failed.
fn name_second_wait(inner: &Inner, asker: Asker) {
    if let Some(first) = taken_by_this_task(inner) {
        inner.core().totals.nested_acquires += 1;
        tracing::warn!(
            pool = inner.options.name,
            "{} waits for a connection while its task holds one that {} took: with every task doing so, the pool deadlocks",
            asker.at,
            first,
        );
    }
}

fn taken_by_this_task(inner: &Inner) -> Option<CallSite> {
    if !inner.tracks() {
        return None;
    }
    let here = TaskKey::here();
    let sessions: Vec<_> = inner.core().sessions().collect();
    sessions.iter().find_map(|session| session.taken_here(here))
}

fn explain(
    inner: &Inner,
    asker: Asker,
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
    let sessions: Vec<_> = core.sessions().collect();
    let turn = core.turn_comes_in();
    let full = core.in_use >= core.limit();
    drop(core);
    // Whoever waits in the queue waits for one of two things.
    let phase = match phase {
        AcquirePhase::Queue if !full => AcquirePhase::Dial,
        other => other,
    };
    let oldest = sessions
        .iter()
        .filter_map(|session| Some((session.since()?, session)))
        .min_by_key(|(since, _)| *since)
        .and_then(|(_, session)| session.holder(now));
    AcquireError::new(Explained {
        pool: inner.options.name.clone(),
        phase,
        waited: now - started,
        stats,
        at: asker.at,
        oldest,
        own: taken_by_this_task(inner),
        last_failure: failure.map(|failure| (failure, Duration::ZERO)).or(last_failure),
        turn,
    })
}
