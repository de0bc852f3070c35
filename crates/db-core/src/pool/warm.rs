//! Waiting until a pool has ready what it is to keep ready.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Pool;
use super::core::Inner;
use crate::connect::ConnectFailure;

impl Pool {
    /// Waits until as many connections are open as [`min_idle`](crate::PoolOptions::min_idle) asks for, in use or idle, within
    /// `deadline`. The pool opens them by itself, all at the same time, from when it is made on: without this call, the first who
    /// ask for a connection may be there before it is. With a `min_idle` of 0, there is nothing to wait for.
    ///
    /// Cancel safe: the pool goes on by itself.
    ///
    /// # Errors
    ///
    /// [`WarmUpError`] at the deadline, with what was met; and before it, when waiting cannot mend what was met, or when the pool
    /// is closed.
    pub async fn warm_up(&self, deadline: Duration) -> Result<(), WarmUpError> {
        let started = Instant::now();
        // The keeper does this as well, when it gets its first turn.
        self.inner.core().rests_until = None;
        self.inner.dial_if_wanted();
        let end = timeout(deadline, warm(&self.inner)).await.unwrap_or(End::Late);
        if matches!(end, End::Warm) {
            return Ok(());
        }
        let core = self.inner.core();
        Err(WarmUpError {
            pool: self.name().to_owned(),
            open: core.in_use + core.idle_count(),
            wanted: core.limits.min_idle.min(core.limit()),
            waited: started.elapsed(),
            closed: matches!(end, End::Closed),
            failure: core.last_failure.as_ref().filter(|_| core.down).map(|(failure, _)| failure.clone()),
        })
    }
}

/// How the wait came to its end.
enum End {
    Warm,
    Closed,
    /// The server will say the same next time.
    Refused,
    Late,
}

async fn warm(inner: &Arc<Inner>) -> End {
    loop {
        // A dial tells when it is over, one way or the other.
        let told = inner.gone.notified();
        tokio::pin!(told);
        // Registered before looking, so that nothing is missed in between.
        told.as_mut().enable();
        {
            let core = inner.core();
            if core.closing {
                return End::Closed;
            }
            if core.in_use + core.idle_count() >= core.limits.min_idle.min(core.limit()) {
                return End::Warm;
            }
            let is_final = core.last_failure.as_ref().is_some_and(|(failure, _)| failure.is_final());
            if core.down && core.dialling == 0 && is_final {
                return End::Refused;
            }
        }
        tokio::select! {
            () = told => {}
            () = inner.ended.cancelled() => {}
        }
    }
}

/// A pool did not get ready what it is to keep ready.
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
    /// What the last attempt to open a connection met, if it failed.
    #[must_use]
    pub fn failure(&self) -> Option<&ConnectFailure> {
        self.failure.as_ref()
    }

    /// How many connections were open, and how many were to be.
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
            "pool `{pool}`: {open} of the {wanted} connections that it keeps ready were open after {:.1} s",
            waited.as_secs_f64()
        )?;
        match failure {
            _ if *closed => write!(f, ", and it was closed"),
            Some(failure) => write!(f, "; the last attempt: {failure}"),
            None => Ok(()),
        }
    }
}

// No `source`: what the last attempt met is part of the text already.
impl std::error::Error for WarmUpError {}
