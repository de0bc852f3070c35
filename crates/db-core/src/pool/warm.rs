//! Waiting until a pool's `min_idle` connections are open.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Pool;
use super::driver::Driver;
use crate::connect::ConnectFailure;

impl Pool {
    /// Waits up to `deadline` until [`min_idle`](crate::PoolOptions::min_idle) connections are open, in use or idle. A new pool opens
    /// them at once, all at the same time, but the first callers may come earlier. With a `min_idle` of 0, this returns at once.
    ///
    /// Cancel safe: the pool continues to dial.
    ///
    /// # Errors
    ///
    /// [`WarmUpError`] at the deadline, with the last failure; before the deadline if waiting cannot help, or if the pool is closed.
    pub async fn warm_up(&self, deadline: Duration) -> Result<(), WarmUpError> {
        let started = Instant::now();
        // The keeper does this as well, on its first tick.
        let dials = self.inner.core().state.warm_up(started);
        self.inner.dial(dials);
        let end = timeout(deadline, warm(&self.inner)).await.unwrap_or(End::Late);
        if matches!(end, End::Warm) {
            return Ok(());
        }
        let core = self.inner.core();
        let (open, wanted) = core.state.ready_of_wanted();
        Err(WarmUpError {
            pool: self.name().to_owned(),
            open,
            wanted,
            waited: started.elapsed(),
            closed: matches!(end, End::Closed),
            failure: core
                .last_failure
                .as_ref()
                .filter(|_| core.state.is_down())
                .map(|(failure, _)| failure.clone()),
        })
    }
}

/// How the wait ended.
enum End {
    Warm,
    Closed,
    /// The server would refuse the next dial, too.
    Refused,
    Late,
}

async fn warm(driver: &Arc<Driver>) -> End {
    loop {
        // Notified when a dial has ended, whether it succeeded or failed.
        let progress = driver.progress.notified();
        tokio::pin!(progress);
        // Registered before the state is read, so that no notification is missed in between.
        progress.as_mut().enable();
        if let Some(end) = end_of_warm_up(driver) {
            return end;
        }
        tokio::select! {
            () = progress => {}
            () = driver.ended.cancelled() => {}
        }
    }
}

fn end_of_warm_up(driver: &Driver) -> Option<End> {
    let core = driver.core();
    if core.state.is_closing() {
        return Some(End::Closed);
    }
    let (ready, wanted) = core.state.ready_of_wanted();
    if ready >= wanted {
        return Some(End::Warm);
    }
    let is_final = core.last_failure.as_ref().is_some_and(|(failure, _)| failure.is_final());
    let is_over = core.state.is_down() && core.state.counts().dialling == 0;
    (is_over && is_final).then_some(End::Refused)
}

/// A pool could not open its `min_idle` connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmUpError {
    pool: String,
    open: u32,
    wanted: u32,
    waited: Duration,
    closed: bool,
    failure: Option<ConnectFailure>,
}

impl WarmUpError {
    /// The failure of the last dial, if it failed.
    #[must_use]
    pub fn failure(&self) -> Option<&ConnectFailure> {
        self.failure.as_ref()
    }

    /// The numbers of connections open and wanted.
    #[must_use]
    pub fn open_of_wanted(&self) -> (u32, u32) {
        (self.open, self.wanted)
    }
}

impl fmt::Display for WarmUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, open, wanted, waited, closed, failure } = self;
        write!(
            f,
            "pool `{pool}`: {open} of {wanted} connections (min_idle) were open after {:.1} s",
            waited.as_secs_f64()
        )?;
        match failure {
            _ if *closed => write!(f, ", and the pool is closed"),
            Some(failure) => write!(f, "; the last dial failed: {failure}"),
            None => Ok(()),
        }
    }
}

// No `source`: the text already contains the last failure.
impl std::error::Error for WarmUpError {}
