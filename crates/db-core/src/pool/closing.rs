//! Closing a pool, within a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout_at;

use super::driver::Driver;
use crate::cancels::Cancel;
use crate::tracker::{Holder, Session};

/// The most of the deadline that is reserved for stopping work that did not finish.
const ABORT_TIME: Duration = Duration::from_secs(1);

/// How a pool was closed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Closed {
    /// The checkouts that had not ended when their time was up: their statements were cancelled, and if that did not return the
    /// connection, its session was ended. Empty if all work was finished. Without a [tracker](crate::Tracking), `unnamed` counts
    /// them instead.
    pub aborted: Vec<Holder>,
    /// The number of aborted checkouts whose holder is not known.
    pub unnamed: u32,
    /// Whether all connections were closed in time. Other connections close when they are returned.
    pub in_time: bool,
}

impl Closed {
    /// Whether no work was aborted, and all connections were closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.in_time && self.aborted.is_empty() && self.unnamed == 0
    }
}

pub(super) async fn close(driver: &Arc<Driver>, deadline: Duration) -> Closed {
    // The clock may not be able to represent later times.
    let deadline = deadline.min(Duration::from_hours(365 * 24));
    let ends = tokio::time::Instant::now() + deadline;
    let mut closed = Closed::default();
    stop_admitting(driver);
    if let Some(canceller) = &driver.canceller {
        canceller.prepare();
    }
    // The call refuses new requests; the future waits for the connections in use.
    let sqlx = driver.sqlx.get().map(sqlx::Pool::close);

    let last_part = ABORT_TIME.min(deadline / 4);
    if timeout_at(ends - last_part, emptied(driver)).await.is_err() {
        let out = report_aborted(driver, &mut closed);
        let cancelled = ends - last_part / 2;
        cancel(driver, &out, cancelled).await;
        if timeout_at(cancelled, emptied(driver)).await.is_err() {
            terminate(driver, &sessions_out(driver), ends).await;
        }
    }
    closed.in_time = timeout_at(ends, emptied(driver)).await.is_ok();

    let left = ends.saturating_duration_since(tokio::time::Instant::now());
    if let Some(canceller) = &driver.canceller {
        canceller.close(left).await;
    }
    if let Some(closing) = sqlx {
        closed.in_time &= timeout_at(ends, closing).await.is_ok();
    }
    closed
}

fn stop_admitting(driver: &Arc<Driver>) {
    let actions = driver.core().state.close();
    driver.ended.cancel();
    driver.perform(actions);
}

/// Waits until no connection is left.
async fn emptied(driver: &Driver) {
    loop {
        let progress = driver.progress.notified();
        tokio::pin!(progress);
        // Registered before the state is read, so that no notification is missed in between.
        progress.as_mut().enable();
        if driver.core().state.is_empty() {
            return;
        }
        progress.await;
    }
}

fn sessions_out(driver: &Driver) -> Vec<Arc<Session>> {
    driver.sessions.all()
}

/// Records and logs the checkouts that are aborted.
fn report_aborted(driver: &Driver, closed: &mut Closed) -> Vec<Arc<Session>> {
    let out = sessions_out(driver);
    let now = Instant::now();
    for session in &out {
        match session.holder(now) {
            Some(holder) => {
                let (pool, pid) = (&driver.options.name, holder.pid);
                tracing::warn!(pool, pid, "closing the pool aborts {holder}");
                closed.aborted.push(holder);
            }
            None if driver.tracks() => {}
            None => closed.unnamed += 1,
        }
    }
    out
}

/// Cancels the statements of these sessions, all at the same time.
async fn cancel(driver: &Driver, sessions: &[Arc<Session>], until: tokio::time::Instant) {
    // Through a pooler, the sessions are not known.
    let Some(canceller) = &driver.canceller else { return };
    let all = join_all(sessions.iter().map(|session| canceller.cancel(session)));
    let undone = match timeout_at(until, all).await {
        Ok(answers) => {
            let is_done = |answer: &&Cancel| matches!(answer, Cancel::Answered | Cancel::Gone);
            answers.len() - answers.iter().filter(is_done).count()
        }
        Err(_) => sessions.len(),
    };
    if undone > 0 {
        tracing::warn!(pool = driver.options.name, undone, "statements could not be cancelled");
    }
}

/// Ends these sessions, all of them at the same time.
async fn terminate(driver: &Driver, sessions: &[Arc<Session>], until: tokio::time::Instant) {
    let Some(canceller) = &driver.canceller else { return };
    let all = join_all(sessions.iter().map(|session| canceller.terminate(session)));
    let undone = match timeout_at(until, all).await {
        Ok(answers) => answers.iter().filter(|ended| !**ended).count(),
        Err(_) => sessions.len(),
    };
    if undone > 0 {
        tracing::warn!(pool = driver.options.name, undone, "sessions could not be ended");
    }
}
