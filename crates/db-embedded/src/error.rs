//! Everything that can go wrong, each with what is known of it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::binaries::{Search, Versions};
use crate::deadline::Phase;
use crate::version::Version;

/// Why there is no server. The text is one to three lines, for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable server programs on this machine.
    #[error(
        "no PostgreSQL server programs (`postgres` and `initdb`) found: {search}\n\
         Install them: `apt install postgresql`, `dnf install postgresql-server`, `apk add postgresql`, `brew install postgresql`;\n\
         or set DB_EMBEDDED_PGBIN to the folder they are in, or DATABASE_URL to a server that runs."
    )]
    NoBinaries {
        /// Each place, and what was wrong with it.
        search: Search,
    },
    /// The kept data can only be read by another major version than those found.
    #[error(
        "the data in {folder} was made by PostgreSQL {made_by}, but only {found} found\n\
         Install PostgreSQL {made_by}, or move the folder away to begin with an empty one.",
        folder = folder.display(), found = Versions(found),
    )]
    WrongMajor {
        /// The data folder.
        folder: PathBuf,
        /// What its `PG_VERSION` says.
        made_by: String,
        /// The versions that are there.
        found: Vec<Version>,
    },
    /// A server that we did not start runs on the data.
    #[error("another PostgreSQL server, process {pid}, runs on {folder}: stop it first", folder = folder.display())]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The process id of that server.
        pid: u32,
    },
    /// The disk, a quota or a limit on file sizes left no room.
    #[error("no space left for {folder}: {what}", folder = folder.display())]
    DiskFull {
        /// What could not be written.
        folder: PathBuf,
        /// The message of whoever wanted to write.
        what: String,
    },
    /// We are root, PostgreSQL must not be, and the account it runs as cannot get to the folder.
    #[error(
        "the user {user}, which PostgreSQL runs as because it refuses to run as root, cannot pass through {ancestor} to {folder}\n\
         Choose a folder elsewhere, such as /var/lib, or allow it: chmod o+x {ancestor}",
        ancestor = ancestor.display(), folder = folder.display(),
    )]
    NotTraversable {
        /// The folder that was asked for.
        folder: PathBuf,
        /// The one on the way that is closed.
        ancestor: PathBuf,
        /// The account that PostgreSQL would run as.
        user: String,
    },
    /// The folder belongs to somebody else, or holds something else.
    #[error("{folder} is not ours to use: {why}", folder = folder.display())]
    NotOurs {
        /// The folder that was asked for.
        folder: PathBuf,
        /// Whose it is, or what is in it.
        why: String,
    },
    /// The name of a shared server is used as a file name.
    #[error("{name:?} cannot name a shared server: 1 to 32 characters of a-z, 0-9, `_` and `-`")]
    InvalidName {
        /// The name that was given.
        name: String,
    },
    /// `initdb` could not make the data folder.
    #[error("initdb could not make the data folder {folder}:\n{output}", folder = folder.display())]
    InitFailed {
        /// What it was to make.
        folder: PathBuf,
        /// The last lines that it said.
        output: String,
    },
    /// The server ended before it accepted a connection.
    #[error("the PostgreSQL server on {folder} did not start:\n{log}", folder = folder.display())]
    StartFailed {
        /// The server's folder.
        folder: PathBuf,
        /// The last lines of its log.
        log: String,
    },
    /// The time ran out.
    #[error("waited {:.1} s for {phase}", waited.as_secs_f64())]
    TimedOut {
        /// What was waited for at that moment.
        phase: Phase,
        /// Since the call, all phases together.
        waited: Duration,
    },
    /// The server is not running, although we hold a lease: it died, and its supervisor gave up or is about to revive it.
    #[error("no server runs on {folder} at the moment", folder = folder.display())]
    NotRunning {
        /// The server's folder.
        folder: PathBuf,
    },
    /// We are root and there is no account to drop to.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user {} to run it as\n\
         Run as an ordinary user, or make one: useradd --system postgres",
        tried.join(" or ")
    )]
    NoUnprivilegedUser {
        /// The accounts that were looked for.
        tried: &'static [&'static str],
    },
    /// `initdb`, and the check who connects, need the name of the user, and it has none.
    #[error(
        "the user id {uid} of this process has no usable name in the user database\n\
         PostgreSQL needs one: add the user (in a container, to /etc/passwd), or run as another."
    )]
    NoUserName {
        /// The effective user id.
        uid: u32,
    },
    /// The supervisor, a shell script, cannot lock files without one of these.
    #[error(
        "neither `flock` (of util-linux) nor `perl` is on PATH; one of them is needed to share the server"
    )]
    NoLockTool,
    /// The operating system refused something.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// As in "cannot *open* it".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How the C library words a disk without room, a quota, and a limit on file sizes, as the server repeats it.
const NO_SPACE: [&str; 3] = ["No space left on device", "Disk quota exceeded", "File too large"];

impl Error {
    /// The line of a program's output that says that there is no space.
    pub(crate) fn disk_full(folder: &Path, output: &str) -> Option<Error> {
        let line = output.lines().find(|line| NO_SPACE.iter().any(|words| line.contains(words)))?;
        Some(Error::DiskFull { folder: folder.to_path_buf(), what: line.trim().to_owned() })
    }
}

/// Adds what was attempted, and on what, to an error of the operating system.
pub(crate) trait IoResultExt<T> {
    fn doing(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T> IoResultExt<T> for io::Result<T> {
    fn doing(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| {
            let path = path.into();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Error::DiskFull { folder: path, what: format!("cannot {action} it: {source}") }
                }
                _ => Error::Io { action, path, source },
            }
        })
    }
}
