//! One deadline for several steps with retries.

use std::fmt::Display;
use std::time::Instant;

use crate::{Backoff, Config, ConnectError, ConnectRetry};

/// The time that several steps with retries share: the deadline of a [`ConnectRetry`], counted from [`RetryBudget::new`].
///
/// The caller decides whether retrying an error can help.
#[derive(Debug)]
pub struct RetryBudget {
    retry: ConnectRetry,
    began: Instant,
    backoff: Backoff,
    /// Of all steps that connect.
    attempts: u32,
}

impl RetryBudget {
    /// The deadline of `retry` counts from now.
    #[must_use]
    pub fn new(retry: ConnectRetry) -> Self {
        Self { retry, began: Instant::now(), backoff: backoff(&retry), attempts: 0 }
    }

    /// The same retry with the time that is left as its deadline, for a step that retries by itself.
    #[must_use]
    pub fn left(&self) -> ConnectRetry {
        self.retry.deadline(self.retry.deadline.saturating_sub(self.began.elapsed()))
    }

    /// Logs what a step met, and pauses before it is tried again. Says whether it may be: not when the time is up.
    ///
    /// Cancel safe.
    pub async fn pause(&mut self, to: &Config, step: &str, error: &(impl Display + Sync)) -> bool {
        let pause = self.backoff.pause();
        if self.left().deadline <= pause {
            return false;
        }
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(%to, step, %error, pause_ms, "interrupted, trying again");
        tokio::time::sleep(pause).await;
        true
    }

    /// Counts the attempts of a step that tried to connect, and has its error tell of all attempts so far and of the whole wait:
    /// what the last step tried alone is a part of that. To be called once for each such error.
    pub fn count(&mut self, error: &mut ConnectError) {
        self.attempts = self.attempts.saturating_add(error.attempts());
        error.tell_all(self.attempts, self.began.elapsed());
    }

    /// The next pause is a short one again: something was reached meanwhile.
    pub fn refresh(&mut self) {
        self.backoff = backoff(&self.retry);
    }
}

fn backoff(retry: &ConnectRetry) -> Backoff {
    Backoff::new(retry.min_pause, retry.max_pause)
}
