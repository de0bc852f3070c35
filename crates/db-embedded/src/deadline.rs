//! Every wait of this crate ends, and says what it was for.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Error;

/// How often a state is looked at. A fresh server needs 20 ms from its start to its first answer.
const GLANCE: Duration = Duration::from_millis(5);

/// What was waited for when the time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another process is starting or releasing this server, and does not finish.
    Starter,
    /// The previous server on this folder is still stopping.
    PreviousServer,
    /// `initdb` is making the data folder.
    InitDb,
    /// The server started and does not accept connections yet; after a crash it may be recovering.
    Ready,
    /// The last lease was released and the server does not stop.
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

/// The end of one `start` or `release`, whatever it waits for on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    begun: Instant,
    patience: Duration,
}

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Deadline {
        Deadline { begun: Instant::now(), patience }
    }

    pub(crate) fn waited(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Blocks until `look` finds something, and looks once more when the time is up.
    pub(crate) fn poll<T>(
        &self,
        phase: Phase,
        mut look: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            let late = self.waited() >= self.patience;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if late {
                return Err(Error::TimedOut { phase, waited: self.waited() });
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "between two looks: everything here blocks, and says so"
            )]
            std::thread::sleep(GLANCE);
        }
    }
}
