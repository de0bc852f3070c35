//! One deadline for several retried steps.

use std::fmt::Display;
use std::time::Instant;

use crate::{Backoff, Config, ConnectError, ConnectRetry};

/// The time that several retried steps share: the deadline of a [`ConnectRetry`], counted from [`RetryBudget::new`].
///
/// The caller decides whether retrying an error can help.
#[derive(Debug)]
pub struct RetryBudget {
    retry: ConnectRetry,
    began: Instant,
    backoff: Backoff,
    /// The attempts of all steps that connect.
    attempts: u32,
}

impl RetryBudget {
    /// Starts the deadline of `retry` now.
    #[must_use]
    pub fn new(retry: ConnectRetry) -> Self {
        Self { retry, began: Instant::now(), backoff: backoff(&retry), attempts: 0 }
    }

    /// The same retry options with the remaining time as their deadline, for a step that retries by itself.
    #[must_use]
    pub fn left(&self) -> ConnectRetry {
        self.retry.deadline(self.retry.deadline.saturating_sub(self.began.elapsed()))
    }

    /// Logs a step's error, and pauses before the next attempt. Returns false, without a pause, if the deadline comes first.
    ///
    /// Cancel safe.
    pub async fn pause(&mut self, to: &Config, step: &str, error: &(impl Display + Sync)) -> bool {
        let pause = self.backoff.pause();
        if self.left().deadline <= pause {
            return false;
        }
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(%to, step, %error, pause_ms, "a step failed and is tried again");
        tokio::time::sleep(pause).await;
        true
    }

    /// Adds the attempts of a step that tried to connect, and sets the error's attempts and wait to the totals so far. Call this
    /// once for each such error.
    pub fn count(&mut self, error: &mut ConnectError) {
        self.attempts = self.attempts.saturating_add(error.attempts());
        error.set_total(self.attempts, self.began.elapsed());
    }

    /// Starts again with short pauses, since a step succeeded.
    pub fn refresh(&mut self) {
        self.backoff = backoff(&self.retry);
    }
}

fn backoff(retry: &ConnectRetry) -> Backoff {
    Backoff::new(retry.min_pause, retry.max_pause)
}
