//! Errors of finding, starting and stopping a server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::phase::Phase;
use crate::search::{Search, Versions};
use crate::version::Version;

/// Why there is no server. The text is one to three lines, for operators.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable server programs were found.
    #[error(
        "no PostgreSQL server programs (`postgres` and `initdb`) found: {search}\n\
         Install them: `apt install postgresql`, `dnf install postgresql-server`, `apk add postgresql`, `brew install postgresql`;\n\
         or set DB_EMBEDDED_PGBIN to the folder they are in, or DATABASE_URL to a server that runs."
    )]
    NoBinaries {
        /// Each folder searched, and what was wrong with it.
        search: Search,
    },
    /// A program that not every package has is missing.
    #[error(
        "no program `{name}` in {folder}\n\
         Install the complete server package of PostgreSQL, or set DB_EMBEDDED_PGBIN to a folder that has it.",
        folder = folder.display(),
    )]
    NoProgram {
        /// The program.
        name: &'static str,
        /// The folder of the other programs.
        folder: PathBuf,
    },
    /// The kept data needs another major version than those found.
    #[error(
        "the data in {folder} was made by PostgreSQL {made_by}, but only {found} found\n\
         Install PostgreSQL {made_by}, or move the folder away to begin with an empty one.",
        folder = folder.display(), found = Versions(found),
    )]
    WrongMajor {
        /// The data folder.
        folder: PathBuf,
        /// The version in its `PG_VERSION`.
        made_by: String,
        /// The versions found.
        found: Vec<Version>,
    },
    /// A server that this crate did not start runs on the data.
    #[error("another PostgreSQL server, process {pid}, runs on {folder}: stop it first", folder = folder.display())]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The process id of that server.
        pid: u32,
    },
    /// The disk is full, or a quota or a limit on file sizes is reached.
    #[error("no space left for {folder}: {what}", folder = folder.display())]
    DiskFull {
        /// What could not be written.
        folder: PathBuf,
        /// The message of the program or system call that wanted to write.
        what: String,
    },
    /// This process is root, and the account that runs PostgreSQL cannot reach the folder.
    #[error(
        "the user {user}, which PostgreSQL runs as because it refuses to run as root, cannot pass through {ancestor} to {folder}\n\
         Choose a folder elsewhere, such as /var/lib, or allow it: chmod o+x {ancestor}",
        ancestor = ancestor.display(), folder = folder.display(),
    )]
    NotTraversable {
        /// The folder that was requested.
        folder: PathBuf,
        /// The folder on the way that cannot be entered.
        ancestor: PathBuf,
        /// The account that would run PostgreSQL.
        user: String,
    },
    /// The folder belongs to another user, or holds other files.
    #[error("{folder} cannot be used for a server: {why}", folder = folder.display())]
    NotOurs {
        /// The folder that was requested.
        folder: PathBuf,
        /// The owner, or the file found in it.
        why: String,
    },
    /// The name of a shared server cannot be a file name.
    #[error("{name:?} cannot name a shared server: 1 to 32 characters of a-z, 0-9, `_` and `-`")]
    InvalidName {
        /// The given name.
        name: String,
    },
    /// `initdb` could not make the data folder.
    #[error("initdb could not make the data folder {folder}:\n{output}", folder = folder.display())]
    InitFailed {
        /// The folder that `initdb` was to make.
        folder: PathBuf,
        /// The last lines of its output.
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
    /// The deadline has passed.
    #[error("gave up after waiting {:.1} s for {phase}", waited.as_secs_f64())]
    TimedOut {
        /// What was waited for at the deadline.
        phase: Phase,
        /// The time since the call, all phases together.
        waited: Duration,
    },
    /// The server died, and its supervisor either gave up or is about to restart it.
    #[error("no server runs on {folder} at the moment", folder = folder.display())]
    NotRunning {
        /// The server's folder.
        folder: PathBuf,
    },
    /// This process is root, and there is no account to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user {} to run it as\n\
         Run as an ordinary user, or make one: useradd --system postgres",
        tried.join(" or ")
    )]
    NoUnprivilegedUser {
        /// The accounts that were tried.
        tried: &'static [&'static str],
    },
    /// The user has no usable name, which `initdb` and the check of clients need.
    #[error(
        "the user id {uid} of this process has no usable name in the user database\n\
         PostgreSQL needs one: add the user (in a container, to /etc/passwd), or run as another."
    )]
    NoUserName {
        /// The effective user id.
        uid: u32,
    },
    /// The supervisor, a shell script, needs `flock` or `perl` to lock files.
    #[error(
        "neither `flock` (of util-linux) nor `perl` is on PATH; one of them is needed to share the server"
    )]
    NoLockTool,
    /// A system call failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried, as in "cannot *open* it".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// The C library's texts for a full disk, a quota, and a limit on file sizes; the server repeats them.
const NO_SPACE: [&str; 3] = ["No space left on device", "Disk quota exceeded", "File too large"];

impl Error {
    /// The error for the line of a program's output that says that there is no space.
    pub(crate) fn disk_full(folder: &Path, output: &str) -> Option<Error> {
        let line = output.lines().find(|line| NO_SPACE.iter().any(|words| line.contains(words)))?;
        Some(Error::DiskFull { folder: folder.to_path_buf(), what: line.trim().to_owned() })
    }
}

/// Adds the action and its path to an error of the operating system.
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
