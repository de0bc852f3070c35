//! How far opening is, for a probe that asks before there is a database.

use std::fmt;

use tokio::sync::watch;

/// How far [`open`](crate::open) is. Cheap to clone. Made by [`Options::startup`](crate::Options::startup).
#[derive(Debug, Clone)]
pub struct Startup(watch::Receiver<StartupPhase>);

/// The step that opening is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartupPhase {
    /// It has not begun.
    #[default]
    Waiting,
    /// It reads the keys, and waits for the server.
    Connecting,
    /// It migrates.
    Migrating,
    /// It opens the pools' first connections, and the bus.
    Opening,
    /// It compares the encryption keys and the declared columns with the database.
    CheckingKeys,
    /// The database is open.
    Opened,
    /// It could not be opened, or opening was given up. The error of [`open`](crate::open) says why.
    Failed,
}

impl fmt::Display for StartupPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "the database is not being opened yet",
            Self::Connecting => "the database is being connected to",
            Self::Migrating => "the database is being migrated",
            Self::Opening => "the pools and the bus are being opened",
            Self::CheckingKeys => "the encryption keys are being compared with the database",
            Self::Opened => "the database is open",
            Self::Failed => "the database could not be opened",
        })
    }
}

impl Startup {
    /// The step that opening is at.
    #[must_use]
    pub fn phase(&self) -> StartupPhase {
        *self.0.borrow()
    }

    /// Whether the database is open. It stays so.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase() == StartupPhase::Opened
    }
}

/// Tells how far opening is. Dropped before the end, it tells that opening has failed.
#[derive(Debug, Default)]
pub(crate) struct Told(watch::Sender<StartupPhase>);

impl Told {
    pub(crate) fn startup(&self) -> Startup {
        Startup(self.0.subscribe())
    }

    pub(crate) fn at(&self, phase: StartupPhase) {
        self.0.send_replace(phase);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send_if_modified(|phase| {
            let is_over = *phase == StartupPhase::Opened;
            *phase = if is_over { StartupPhase::Opened } else { StartupPhase::Failed };
            !is_over
        });
    }
}
