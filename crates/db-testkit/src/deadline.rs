//! Waiting for other tests, never for ever.

use std::time::{Duration, Instant};

use crate::Error;

/// For one database, the migration of its template included.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    begun: Instant,
    patience: Duration,
}

impl Deadline {
    pub(crate) fn begin() -> Deadline {
        Deadline::after(PATIENCE)
    }

    pub(crate) fn after(patience: Duration) -> Deadline {
        Deadline { begun: Instant::now(), patience }
    }

    /// A pause before the next try. Not the same for everybody: those who collided would do so again.
    pub(crate) async fn pause(self, what: &'static str) -> Result<(), Error> {
        let waited = self.begun.elapsed();
        if waited > self.patience {
            return Err(Error::TimedOut { what, waited });
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..25))).await;
        Ok(())
    }
}
