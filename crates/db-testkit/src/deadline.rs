//! Waiting for other tests, never for ever.

use std::time::{Duration, Instant};

use crate::Error;

/// For one database, the migration of its template included.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn begin() -> Deadline {
        Deadline(Instant::now())
    }

    /// A pause before the next try. Not the same for everybody: those who collided would do so again.
    pub(crate) async fn pause(self, what: &'static str) -> Result<(), Error> {
        let waited = self.0.elapsed();
        if waited > PATIENCE {
            return Err(Error::TimedOut { what, waited });
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..25))).await;
        Ok(())
    }
}
