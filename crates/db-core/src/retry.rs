//! Doing something again, where its error says that this may help.

use std::time::Duration;

use derive_setters::Setters;

use crate::error::AcquirePhase;
use crate::{AcquireError, Backoff, Class, Error, Repeat, StatementError};

/// How often, and after what pauses, a transaction is repeated.
///
/// Its error decides whether it is: yes for what never reached the server (refused, starting up), for a session that was lost
/// (57P01), for a transaction that lost against another (40001, 40P01), for a server without disk space or memory (53100,
/// 53200) and for one that takes no writes any more (25006); no for mistakes (42601), constraints (23505), limits of time,
/// a pool whose connections are all taken, which more requests only make fuller, and a commit that may be done
/// ([`Error::CommitUnknown`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct TxRetry {
    /// Repetitions after the first attempt (default 3).
    pub retries: u32,
    /// The first pause [1 s]. Each further one is twice as long, and made up to twice as long again by chance, so that those
    /// who failed together do not come back together.
    pub min_pause: Duration,
    /// No pause is longer before chance comes in [5 s].
    pub max_pause: Duration,
    /// The first pause after a conflict [10 ms]: the other transaction is done, and nothing has to recover.
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
    /// What the error means for the decision to try again. `None` where trying again does harm or no good, whatever the
    /// class.
    fn retry_class(&self) -> Option<Class>;
}

impl Classify for Error {
    fn retry_class(&self) -> Option<Class> {
        match self {
            Self::Acquire(error) => error.retry_class(),
            Self::Statement(error) => error.retry_class(),
            // It may be done, and who asked for it cannot know: a transaction is more than can be harmless when done twice.
            Self::CommitUnknown(_) => None,
            other => (other.repeat() != Repeat::Never).then(|| other.class()),
        }
    }
}

impl Classify for AcquireError {
    fn retry_class(&self) -> Option<Class> {
        match self.phase() {
            AcquirePhase::Dial | AcquirePhase::Verify => Some(Class::NotReached),
            AcquirePhase::Queue | AcquirePhase::Shed | AcquirePhase::Closed => None,
        }
    }
}

impl Classify for StatementError {
    fn retry_class(&self) -> Option<Class> {
        self.verdict().retry_class()
    }
}

impl TxRetry {
    /// Does something, and does it again when its error is of a class that this may help.
    ///
    /// What is done must be harmless when done twice: after a lost session nobody knows whether the first time counted. For
    /// transactions there is [`Handle::tx_retry`](crate::Handle::tx_retry), which knows.
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
    /// Dropping the future stops it at any point.
    ///
    /// # Errors
    ///
    /// That of the last time.
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

/// The pauses of one piece of work.
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

    /// How long to pause after an error of this class; `None` to give up.
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
    fn three_times_after_the_first_with_growing_pauses() {
        let mut pauses = Pauses::new(TxRetry::default());

        for (least, most) in [(1, 2), (2, 4), (4, 8)] {
            let pause = pauses.after(Class::Lost).expect("another time");
            assert!(pause >= Duration::from_secs(least) && pause <= Duration::from_secs(most), "{pause:?}");
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
        let pause = Pauses::new(TxRetry::default()).after(Class::Conflict).expect("another time");

        assert!(pause <= Duration::from_millis(20), "{pause:?}");
    }
}
