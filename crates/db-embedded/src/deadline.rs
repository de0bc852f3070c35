//! Waiting with a deadline; the error names what was waited for.

use std::time::{Duration, Instant};

use crate::{Error, Phase};

/// Pause between two checks of a state. A fresh server needs 20 ms from its start to its first answer.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The deadline of one `start` or `release`, shared by all its phases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    begun: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Deadline {
        Deadline { begun: Instant::now(), timeout }
    }

    pub(crate) fn waited(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Blocks until `look` returns a value. Calls it once more at the deadline.
    pub(crate) fn poll<T>(
        &self,
        phase: Phase,
        mut look: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            let late = self.waited() >= self.timeout;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if late {
                return Err(Error::TimedOut { phase, waited: self.waited() });
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "between two checks; everything here is documented to block"
            )]
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
