//! Retrying transactions and other work.

use std::time::Duration;

use derive_setters::Setters;

use crate::error::AcquirePhase;
use crate::{AcquireError, Backoff, Class, Error, Repeat, StatementError};

/// How often a transaction is repeated, and after what pauses.
///
/// The error decides. Repeated: errors before the server was reached (refused, starting up), a lost session (57P01), a conflict with
/// another transaction (40001, 40P01), a server without disk space or memory (53100, 53200), and a server that no longer accepts
/// writes (25006). Not repeated: mistakes (42601), constraint violations (23505), timeouts, a pool whose connections are all in use
/// (more requests only fill it further), and a commit that may have taken effect ([`Error::CommitUnknown`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct TxRetry {
    /// Repetitions after the first attempt (default 3).
    pub retries: u32,
    /// The first pause (default 1 s). Each further pause is twice as long, and jitter makes it up to twice as long again, so that
    /// transactions that failed together do not repeat together.
    pub min_pause: Duration,
    /// The longest pause, without its jitter (default 5 s).
    pub max_pause: Duration,
    /// The first pause after a conflict (default 10 ms). It is short, since the other transaction has ended.
    pub conflict_pause: Duration,
}

impl Default for TxRetry {
    fn default() -> Self {
        Self {
            retries: 3,
            min_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(5),
            conflict_pause: Duration::from_millis(10),
        }
    }
}

/// An error that knows its [`Class`].
pub trait Classify {
    /// The class for the decision to try again. `None` if a retry cannot help or may do harm, whatever the error's class.
    fn retry_class(&self) -> Option<Class>;
}

impl Classify for Error {
    fn retry_class(&self) -> Option<Class> {
        match self {
            Self::Acquire(error) => error.retry_class(),
            Self::Statement(error) => error.retry_class(),
            // The transaction may have committed, and it is rarely harmless to run one twice.
            Self::CommitUnknown(_) => None,
            other => (other.repeat() != Repeat::Never).then(|| other.class()),
        }
    }
}

impl Classify for AcquireError {
    fn retry_class(&self) -> Option<Class> {
        match self.phase() {
            _ if self.is_past_deadline() => None,
            AcquirePhase::Dial | AcquirePhase::Verify => Some(Class::NotReached),
            AcquirePhase::Queue
            | AcquirePhase::Shed
            | AcquirePhase::Overloaded
            | AcquirePhase::PastDeadline
            | AcquirePhase::Closed => None,
        }
    }
}

impl Classify for StatementError {
    fn retry_class(&self) -> Option<Class> {
        self.verdict().retry_class()
    }
}

impl TxRetry {
    /// Runs `work`, and repeats it if its error is of a class for which that helps.
    ///
    /// Doing `work` twice must be harmless: after a lost session, the first run may have taken effect. For
    /// transactions use [`Handle::tx_retry`](crate::Handle::tx_retry), which repeats only what had no effect.
    ///
    /// ```
    /// # db_testkit::run(async |db| {
    /// # let config = db_core::Config::from_url(&db.url())?;
    /// # let pool = db_core::Pool::new(&config, db_core::PoolOptions::api());
    /// # sqlx::query("create table shop (name text)").execute(&db.pool()).await?;
    /// use db_core::TxRetry;
    ///
    /// let shops: i64 = TxRetry::default()
    ///     .run(|| async { Ok::<_, db_core::Error>(sqlx::query_scalar("select count(*) from shop").fetch_one(pool.handle()).await?) })
    ///     .await?;
    /// # let _ = shops;
    /// # Ok::<_, db_core::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// Dropping the future stops at any point.
    ///
    /// # Errors
    ///
    /// The last error.
    pub async fn run<T, E, F>(self, mut work: impl FnMut() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Classify + std::fmt::Display,
    {
        let mut pauses = Pauses::new(self);
        loop {
            let error = match work().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(pause) = error.retry_class().and_then(|class| pauses.after(class)) else {
                return Err(error);
            };
            tracing::info!(%error, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }
}

/// The pauses of one retried piece of work.
pub(crate) struct Pauses {
    left: u32,
    lost: Backoff,
    conflict: Backoff,
}

impl Pauses {
    pub(crate) fn new(policy: TxRetry) -> Self {
        let pauses = |first| Backoff::new(first, policy.max_pause);
        Self { left: policy.retries, lost: pauses(policy.min_pause), conflict: pauses(policy.conflict_pause) }
    }

    /// The pause after an error of this class; `None` to give up.
    pub(crate) fn after(&mut self, class: Class) -> Option<Duration> {
        let pauses = match class {
            Class::NotReached | Class::Lost | Class::Resources | Class::ReadOnly => &mut self.lost,
            Class::Conflict => &mut self.conflict,
            _ => return None,
        };
        self.left = self.left.checked_sub(1)?;
        Some(pauses.pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_retries_with_growing_pauses() {
        let mut pauses = Pauses::new(TxRetry::default());

        for (shortest, longest) in [(1, 2), (2, 4), (4, 8)] {
            let pause = pauses.after(Class::Lost).expect("another retry");
            assert!(
                pause >= Duration::from_secs(shortest) && pause <= Duration::from_secs(longest),
                "{pause:?}"
            );
        }
        assert_eq!(pauses.after(Class::Lost), None);
    }

    #[test]
    fn mistakes_constraints_and_limits_are_not_repeated() {
        for class in [Class::Other, Class::Constraint, Class::TimedOut, Class::Refused] {
            assert_eq!(Pauses::new(TxRetry::default()).after(class), None, "{class:?}");
        }
    }

    #[test]
    fn a_conflict_is_repeated_soon() {
        let pause = Pauses::new(TxRetry::default()).after(Class::Conflict).expect("another retry");

        assert!(pause <= Duration::from_millis(20), "{pause:?}");
    }
}
