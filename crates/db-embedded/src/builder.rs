//! The options of a server.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::place::Place;
use crate::server::Server;
use crate::settings::Admits;
use crate::start::Plan;

/// Options of a server. A server that already runs keeps the options it was started with.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    plan: Plan,
}

impl Server {
    /// A server for this value alone, in a temporary folder of its own that is removed at the end.
    pub fn throwaway() -> Builder {
        Builder::new(Place::Private)
    }

    /// A throwaway server shared by every process of this OS user that gives the same name: 1 to 32 characters of `a-z`,
    /// `0-9`, `_` and `-`. The folder is removed when the last lease goes.
    ///
    /// Processes with different `TMPDIR` do not share it.
    pub fn shared(name: &str) -> Builder {
        Builder::new(Place::Shared(name.to_owned()))
    }

    /// A server whose data stays in `dir`, shared by every process that names the same folder.
    ///
    /// The folder is made if it does not exist; it must be empty or made by this crate. When root starts the server, the user
    /// `postgres` (else `nobody`) must be able to reach the folder, because PostgreSQL refuses to run as root.
    pub fn kept(dir: impl Into<PathBuf>) -> Builder {
        Builder::new(Place::Kept(dir.into()))
    }
}

impl Builder {
    fn new(place: Place) -> Builder {
        Builder {
            plan: Plan {
                place,
                in_memory: false,
                binaries: None,
                timeout: Duration::from_mins(1),
                settings: Vec::new(),
                admits: Admits::Client,
            },
        }
    }

    /// The folder of `postgres` and `initdb`. By default the folder in `DB_EMBEDDED_PGBIN`, else the usual places, as the
    /// [crate's documentation](crate) lists them.
    pub fn binaries(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.plan.binaries = Some(dir.into());
        self
    }

    /// Puts the data of a throwaway or shared server into a file system in memory: on Linux into `/dev/shm`, if that has 2 GB left and
    /// `TMPDIR` is not set. Making and removing databases, which have hundreds of files, is then several times as fast.
    pub fn in_memory(mut self) -> Builder {
        self.plan.in_memory = true;
        self
    }

    /// How long `start`, and later [`Server::release`], may take (default 60 s).
    pub fn start_timeout(mut self, timeout: Duration) -> Builder {
        self.plan.timeout = timeout;
        self
    }

    /// Sets a parameter of the server, as in `postgresql.conf`, and overrides this crate's value. The start fails if PostgreSQL
    /// refuses the value.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Builder {
        self.plan.settings.push((name.into(), value.into()));
        self
    }

    /// Also lets in the account that runs the server, when root starts it: for a program that must not run as root either, such
    /// as a pooler. That account owns the data, so it gains no further access.
    ///
    /// Without root, that account is the one that may connect anyway.
    pub fn allow_service_account(mut self) -> Builder {
        self.plan.admits = Admits::ClientAndItself;
        self
    }

    /// Joins the server if it runs, or starts it.
    ///
    /// Blocks: less than a millisecond to join, about half a second to make the data and start. A process that is killed at any
    /// point of it leaves no server behind.
    ///
    /// # Errors
    ///
    /// The variants of [`Error`] say what was tried and what is known.
    pub fn start(self) -> Result<Server, Error> {
        self.plan.carry_out()
    }
}
