//! Waiting with a deadline; the error names what was waited for.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Error;

/// Pause between two checks of a state. A fresh server needs 20 ms from its start to its first answer.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What was waited for at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another process that starts or releases this server.
    Starter,
    /// The previous server on this folder, to stop.
    PreviousServer,
    /// `initdb`, to make the data folder.
    InitDb,
    /// The server, to accept connections; after a crash it may be recovering.
    Ready,
    /// The server, to stop after its last lease was released.
    Stop,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starter => "another process to finish starting or releasing this server",
            Phase::PreviousServer => "the previous server on this folder to stop",
            Phase::InitDb => "initdb to make the data folder",
            Phase::Ready => "the server to accept connections",
            Phase::Stop => "the server to stop",
        })
    }
}

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
