//! What can be chosen before a server starts.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::place::Place;
use crate::server::Server;
use crate::settings::Admits;
use crate::start::Plan;

/// Chooses how a server starts. Whoever joins one that runs gets it as it is.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    plan: Plan,
}

impl Builder {
    pub(crate) fn new(place: Place) -> Builder {
        Builder {
            plan: Plan {
                place,
                binaries: None,
                patience: Duration::from_mins(1),
                settings: Vec::new(),
                admits: Admits::Client,
            },
        }
    }

    /// The folder of `postgres` and `initdb`. Without it: `DB_EMBEDDED_PGBIN`, or else the usual places, as the
    /// [crate's documentation](crate) lists them.
    pub fn binaries(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.plan.binaries = Some(dir.into());
        self
    }

    /// How long `start`, and later [`Server::release`], may take; 60 s unless set.
    pub fn start_timeout(mut self, timeout: Duration) -> Builder {
        self.plan.patience = timeout;
        self
    }

    /// Sets a parameter of the server, as in `postgresql.conf`; it wins over ours. A value that PostgreSQL refuses
    /// fails the start.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Builder {
        self.plan.settings.push((name.into(), value.into()));
        self
    }

    /// Started by root, the server also lets in processes of the account that it runs as itself, for a program that must no
    /// more run as root than it does: a pooler. That account owns the data, so it gains nothing that it could not take.
    ///
    /// For everybody but root that account is the one that may connect anyway.
    pub fn allow_service_account(mut self) -> Builder {
        self.plan.admits = Admits::ClientAndItself;
        self
    }

    /// Joins the server if it runs, and starts it if not.
    ///
    /// Blocks: well below a millisecond to join, about half a second to make and start a new one. Killed at any point, it
    /// leaves no process behind.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`] says what is known.
    pub fn start(self) -> Result<Server, Error> {
        self.plan.carry_out()
    }
}
