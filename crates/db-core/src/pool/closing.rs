//! Closing a pool, within a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout_at;

use super::cancel::Cancel;
use super::core::{Inner, Refusal};
use super::repair::Suspect;
use crate::tracker::{Holder, Session};

/// So much of the deadline, at most, is kept for cancelling what did not end by itself.
const CUT: Duration = Duration::from_secs(1);

/// How a pool was closed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Closed {
    /// Who still held a connection when the time to finish was up: their statements were cancelled, and when that did
    /// not bring the connection back, the session was ended. Empty when all work was finished. Without a
    /// [tracker](crate::Tracking), `unnamed` counts them instead.
    pub cut: Vec<Holder>,
    /// The same, where nothing is known of the holder.
    pub unnamed: u32,
    /// Whether all connections were closed in time. Those still out close when they are given back.
    pub in_time: bool,
}

impl Closed {
    /// Whether nothing had to be cut, and all was closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.in_time && self.cut.is_empty() && self.unnamed == 0
    }
}

pub(super) async fn close(inner: &Arc<Inner>, deadline: Duration) -> Closed {
    // Further than this, clocks may not reach.
    let deadline = deadline.min(Duration::from_hours(365 * 24));
    let ends = tokio::time::Instant::now() + deadline;
    let mut closed = Closed::default();
    stop_admitting(inner);
    if let Some(canceller) = &inner.canceller {
        canceller.get_ready();
    }
    // The call closes it to requests; the future waits for what is out.
    let sqlx = inner.sqlx.get().map(sqlx::Pool::close);

    let last_part = CUT.min(deadline / 4);
    if timeout_at(ends - last_part, emptied(inner)).await.is_err() {
        let out = cut(inner, &mut closed);
        let cancelled = ends - last_part / 2;
        cancel(inner, &out, cancelled).await;
        if timeout_at(cancelled, emptied(inner)).await.is_err() {
            terminate(inner, &sessions_out(inner), ends).await;
        }
    }
    closed.in_time = timeout_at(ends, emptied(inner)).await.is_ok();

    let left = ends.saturating_duration_since(tokio::time::Instant::now());
    if let Some(canceller) = &inner.canceller {
        canceller.close(left).await;
    }
    if let Some(closing) = sqlx {
        closed.in_time &= timeout_at(ends, closing).await.is_ok();
    }
    closed
}

fn stop_admitting(inner: &Arc<Inner>) {
    let mut core = inner.core();
    core.closing = true;
    let all = core.idle.len();
    let idle = core.idle.drain(all);
    core.repairing += u32::try_from(idle.len()).unwrap_or(u32::MAX);
    drop(core);
    inner.ended.cancel();
    inner.refuse_all(&Refusal::Closed);
    for live in idle {
        inner.runtime.spawn(Suspect::new(Arc::clone(inner), live).close());
    }
}

/// Waits until no connection is left.
async fn emptied(inner: &Inner) {
    loop {
        let told = inner.gone.notified();
        tokio::pin!(told);
        // Registered before looking, so that nothing is missed in between.
        told.as_mut().enable();
        {
            let core = inner.core();
            if core.in_use + core.repairing + core.dialling == 0 {
                return;
            }
        }
        told.await;
    }
}

fn sessions_out(inner: &Inner) -> Vec<Arc<Session>> {
    inner.core().sessions().collect()
}

/// Names those who are still at work.
fn cut(inner: &Inner, closed: &mut Closed) -> Vec<Arc<Session>> {
    let out = sessions_out(inner);
    let now = Instant::now();
    for session in &out {
        match session.holder(now) {
            Some(holder) => {
                let (pool, pid) = (&inner.options.name, holder.pid);
                tracing::warn!(pool, pid, "the pool closes, and cuts off {holder}");
                closed.cut.push(holder);
            }
            None if inner.tracks() => {}
            None => closed.unnamed += 1,
        }
    }
    out
}

/// Has what runs in these sessions cancelled, all of it at the same time.
async fn cancel(inner: &Inner, sessions: &[Arc<Session>], until: tokio::time::Instant) {
    // Through a pooler nobody knows which session it is.
    let Some(canceller) = &inner.canceller else { return };
    let all = join_all(sessions.iter().map(|session| canceller.cancel(session)));
    let undone = match timeout_at(until, all).await {
        Ok(answers) => {
            let is_done = |answer: &&Cancel| matches!(answer, Cancel::Answered | Cancel::Gone);
            answers.len() - answers.iter().filter(is_done).count()
        }
        Err(_) => sessions.len(),
    };
    if undone > 0 {
        tracing::warn!(pool = inner.options.name, undone, "statements could not be cancelled");
    }
}

/// Ends these sessions, all of them at the same time.
async fn terminate(inner: &Inner, sessions: &[Arc<Session>], until: tokio::time::Instant) {
    let Some(canceller) = &inner.canceller else { return };
    let all = join_all(sessions.iter().map(|session| canceller.terminate(session)));
    let undone = match timeout_at(until, all).await {
        Ok(answers) => answers.iter().filter(|ended| !**ended).count(),
        Err(_) => sessions.len(),
    };
    if undone > 0 {
        tracing::warn!(pool = inner.options.name, undone, "sessions could not be ended");
    }
}
