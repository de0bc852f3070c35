//! A lease on a running server.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::builder::Builder;
use crate::deadline::{Deadline, Phase};
use crate::error::Error;
use crate::folder::Folder;
use crate::lock::{LockFile, Mode};
use crate::orphan;
use crate::pidfile::PidFile;
use crate::place::Place;
use crate::settings::ROLE;
use crate::start;
use crate::version::Version;

/// A lease on a running PostgreSQL server: it runs for as long as any process holds one.
///
/// Dropping it releases the lease and returns at once; so does the end of the process, even by `SIGKILL`. The server
/// is stopped, and a throwaway's folder removed, a moment after its last lease went. [`release`](Server::release) waits for
/// that.
///
/// Every method that takes a while blocks: in async code call it inside `spawn_blocking`.
#[derive(Debug)]
pub struct Server {
    folder: Folder,
    lease: LockFile,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    version: Version,
    patience: Duration,
}

/// What the release of a lease brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It was the last one: the server is gone, and if it was a throwaway its folder too.
    Stopped,
    /// Somebody else holds a lease; the server runs on.
    StillShared,
}

impl Server {
    /// A server for this value alone, in a folder of its own for temporary files, which is removed at the end.
    pub fn throwaway() -> Builder {
        Builder::new(Place::Private)
    }

    /// A throwaway server shared by every process of this OS user that gives the same name: 1 to 32 characters of `a-z`,
    /// `0-9`, `_` and `-`. The folder is removed when the last lease goes.
    ///
    /// Processes with different `TMPDIR` do not meet.
    pub fn shared(name: &str) -> Builder {
        Builder::new(Place::Shared(name.to_owned()))
    }

    /// A server whose data stays in `dir`, shared by every process that names the same folder.
    ///
    /// The folder is made when it is not there; it must be empty or hold what this crate put there. As root it must be
    /// somewhere that the user `postgres` (else `nobody`) can get to, because PostgreSQL refuses to run as root.
    pub fn kept(dir: impl Into<PathBuf>) -> Builder {
        Builder::new(Place::Kept(dir.into()))
    }

    pub(crate) fn new(
        folder: Folder,
        lease: LockFile,
        file: &PidFile,
        patience: Duration,
    ) -> Result<Server, Error> {
        Ok(Server {
            data: folder.data(),
            sockets: file.socket_dir.clone().unwrap_or_else(|| folder.run()),
            port: file.port,
            version: start::version_of(&folder)?,
            folder,
            lease,
            patience,
        })
    }

    /// The address of a database on this server, for sqlx, `psql` and everything else that reads libpq's addresses.
    ///
    /// There is no password: the server asks the kernel who connects and lets in the user this process runs as.
    /// Always there are the databases `postgres` and `template1`.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://localhost/{}?host={}&port={}&user={ROLE}",
            percent_encoded(database.as_bytes()),
            percent_encoded(self.sockets.as_os_str().as_encoded_bytes()),
            self.port,
        )
    }

    /// The folder that the socket is in.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// The number in the socket's name. The server does not listen on TCP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The role to connect as, a superuser.
    #[must_use]
    pub fn user(&self) -> &str {
        ROLE
    }

    /// PostgreSQL's own folder of data.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The version of the programs that it was started with.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The process id of the server at this moment; another one after a crash.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when it died and was not revived yet.
    pub fn postmaster_pid(&self) -> Result<u32, Error> {
        match PidFile::read(&self.data)? {
            Some(file) if file.is_alive_in(&self.data) => Ok(file.pid),
            _ => Err(Error::NotRunning { folder: self.folder.path.clone() }),
        }
    }

    /// Releases the lease and, if it was the last one, blocks until the server is gone: some 50 ms for a throwaway, for
    /// a kept one the time of a checkpoint, and never longer than [`Builder::start_timeout`].
    ///
    /// When two processes release their last leases at the same moment, either may report that the other one still had
    /// its own.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] when the server does not stop. The lease is released in any case.
    pub fn release(self) -> Result<Released, Error> {
        let deadline = Deadline::after(self.patience);
        let account = &self.folder.account;
        let running = LockFile::open(&self.folder.running_lock(), account)?;
        let start =
            LockFile::take(&self.folder.start_lock(), Mode::Exclusive, account, deadline, Phase::Starter)?;
        let (Some(running), Some(_start)) = (running, start) else {
            // Somebody removed the folder under a running server; the supervisor ends it all the same.
            return Ok(Released::Stopped);
        };
        // Exclusively: nobody else holds it. Not even shared: the supervisor got it while we changed over.
        if !self.lease.try_take(Mode::Exclusive)? && self.lease.try_take(Mode::Shared)? {
            return Ok(Released::StillShared);
        }
        self.lease.give_up()?;
        deadline.poll(Phase::Stop, || Ok(running.try_take(Mode::Exclusive)?.then_some(())))?;
        // The folder of a throwaway is still there, or the server still runs, only if the supervisor was killed.
        if running.is_current() && self.lease.try_take(Mode::Exclusive)? {
            orphan::finish(&self.folder, deadline)?;
        }
        Ok(Released::Stopped)
    }
}

/// Everything but RFC 3986's unreserved characters.
fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn what_means_something_in_an_address_is_encoded() {
        assert_eq!(percent_encoded("/tmp/a b&c?d=é".as_bytes()), "%2Ftmp%2Fa%20b%26c%3Fd%3D%C3%A9");
    }
}
