//! Taking a connection, and saying why there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Connection;
use tokio::time::timeout;

use super::PING_LIMIT;
use super::core::{Inner, Refusal, Standard, Taken};
use crate::Conn;
use crate::error::{AcquireError, AcquirePhase, Explained};
use crate::statement::Flight;
use crate::tracker::{Asker, TaskKey};

/// Making a connection forget its cached plans takes no longer than this.
const FORGET_LIMIT: Duration = Duration::from_secs(1);

/// A place in the queue, given up when it is dropped.
struct Place<'a> {
    inner: &'a Arc<Inner>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.inner.core().leave_queue(self.ticket);
    }
}

pub(crate) async fn acquire(inner: &Arc<Inner>, asker: Asker) -> Result<Conn, AcquireError> {
    let started = Instant::now();
    let mut now = started;
    loop {
        let (live, standard) = match inner.take() {
            Taken::Live(live, standard) => (live, standard),
            Taken::Closed => return Err(explain(inner, asker, started, AcquirePhase::Closed, None)),
            Taken::Queued(ticket, receiver) => {
                let place = Place { inner, ticket };
                let queued = Instant::now();
                name_second_wait(inner, asker);
                let left = inner.options.acquire_timeout.saturating_sub(started.elapsed());
                let answer = timeout(left, receiver).await;
                // Before anything is explained: it tells how many more wait.
                drop(place);
                let live = match answer {
                    Ok(Ok(Ok(parcel))) => parcel.open(),
                    Ok(Ok(Err(Refusal::Dial(failure)))) => {
                        return Err(explain(
                            inner,
                            asker,
                            started,
                            AcquirePhase::Dial,
                            Some(failure.to_string()),
                        ));
                    }
                    Ok(Ok(Err(Refusal::Closed)) | Err(_)) => {
                        return Err(explain(inner, asker, started, AcquirePhase::Closed, None));
                    }
                    Err(_) => {
                        inner.core().totals.timed_out += 1;
                        return Err(explain(inner, asker, started, AcquirePhase::Queue, None));
                    }
                };
                now = Instant::now();
                let mut core = inner.core();
                core.totals.queued += 1;
                core.totals.queue_wait += now - queued;
                core.totals.acquired += 1;
                (live, core.standard())
            }
        };
        // From here on, dropping the future gives the connection back, or hands it to repair.
        let mut conn = Conn::new(live, Arc::clone(inner), asker, now);
        if conn.is_fit(inner, now, started, standard).await {
            return Ok(conn);
        }
        if started.elapsed() >= inner.options.acquire_timeout {
            inner.core().totals.timed_out += 1;
            return Err(explain(inner, asker, started, AcquirePhase::Verify, None));
        }
        now = Instant::now();
    }
}

impl Conn {
    /// Whether the connection may be handed out: asks for a sign of life where there is a doubt, and makes it forget
    /// plans that have become stale.
    async fn is_fit(&mut self, inner: &Inner, now: Instant, started: Instant, standard: Standard) -> bool {
        let live = self.live_mut();
        let idled = now.saturating_duration_since(live.last_seen);
        if live.generation == standard.generation
            && live.plans == standard.plans
            && idled <= inner.options.ping_after
        {
            return true;
        }
        let left = inner.options.acquire_timeout.saturating_sub(started.elapsed());
        self.put_right(standard, left).await
    }

    async fn put_right(&mut self, standard: Standard, left: Duration) -> bool {
        let (live, state) = self.parts();
        let forget = live.plans != standard.plans;
        let limit = if forget { FORGET_LIMIT } else { PING_LIMIT }.min(left);
        state.begin(Flight::Control);
        let answer = timeout(limit, async {
            if forget {
                live.raw.clear_cached_statements().await?;
            }
            live.raw.ping().await
        });
        if let Ok(Ok(())) = answer.await {
            state.end(None);
            live.last_seen = Instant::now();
            live.generation = standard.generation;
            live.plans = standard.plans;
            true
        } else {
            state.is_lost();
            false
        }
    }
}

/// A task that holds a connection and waits for another of the same pool may wait for itself. This is said when the wait
/// begins, not when it has failed.
fn name_second_wait(inner: &Inner, asker: Asker) {
    if let Some(first) = taken_by_this_task(inner) {
        inner.core().totals.second_waits += 1;
        tracing::warn!(
            pool = inner.options.name,
            "{} waits for a connection while its task holds one that {} took: with every task doing so, the pool deadlocks",
            line(asker.at),
            line(first),
        );
    }
}

fn taken_by_this_task(inner: &Inner) -> Option<&'static std::panic::Location<'static>> {
    if !inner.tracks() {
        return None;
    }
    let here = TaskKey::here();
    let sessions: Vec<_> = inner.core().sessions().collect();
    sessions.iter().find_map(|session| session.taken_here(here))
}

fn line(at: &std::panic::Location<'_>) -> String {
    format!("{}:{}", at.file(), at.line())
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
