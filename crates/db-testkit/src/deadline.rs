//! Waiting for other tests, with a deadline.

use std::time::{Duration, Instant};

use crate::Error;

/// Limit for making one database, including its template.
const LIMIT: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    begun: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn begin() -> Deadline {
        Deadline::after(LIMIT)
    }

    pub(crate) fn after(limit: Duration) -> Deadline {
        Deadline { begun: Instant::now(), limit }
    }

    /// Pauses before the next try, for a random time so that tests do not collide again.
    pub(crate) async fn pause(self, what: &'static str) -> Result<(), Error> {
        let waited = self.begun.elapsed();
        if waited > self.limit {
            return Err(Error::TimedOut { what, waited });
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..25))).await;
        Ok(())
    }
}
