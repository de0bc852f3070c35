//! A lease on a running server.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::Error;
use crate::folder::Folder;
use crate::lock::{LockFile, Mode};
use crate::orphan;
use crate::phase::Phase;
use crate::pidfile::PidFile;
use crate::settings::ROLE;
use crate::version::Version;

/// A lease on a running PostgreSQL server, which runs while any process holds one.
///
/// Dropping it releases the lease and returns at once; the end of the process does the same, even by `SIGKILL`. The server
/// stops, and a throwaway's folder is removed, a moment after the last lease ended. [`release`](Server::release) waits for
/// that.
///
/// Every method that takes a while blocks: in async code use `spawn_blocking`.
#[derive(Debug)]
pub struct Server {
    folder: Folder,
    lease: LockFile,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    version: Version,
    timeout: Duration,
}

/// The effect of releasing a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It was the last lease: the server has stopped, and a throwaway's folder is removed.
    Stopped,
    /// Another process or value holds a lease; the server runs on.
    StillShared,
}

impl Server {
    pub(crate) fn new(
        folder: Folder,
        lease: LockFile,
        file: &PidFile,
        timeout: Duration,
    ) -> Result<Server, Error> {
        Ok(Server {
            data: folder.data(),
            sockets: file.socket_dir.clone().unwrap_or_else(|| folder.run()),
            port: file.port,
            version: folder.server_version()?,
            folder,
            lease,
            timeout,
        })
    }

    /// The address of a database on this server, for sqlx, `psql` and every program that reads libpq's addresses.
    ///
    /// There is no password: the kernel tells the server which user connects, and it lets in the user of this process. The
    /// databases `postgres` and `template1` always exist.
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

    /// The version of the programs that run the server.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The process id of the server; it changes after a crash.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] if the server died and was not restarted yet.
    pub fn postmaster_pid(&self) -> Result<u32, Error> {
        match PidFile::read(&self.data)? {
            Some(file) if file.is_alive_in(&self.data) => Ok(file.pid),
            _ => Err(Error::NotRunning { folder: self.folder.path.clone() }),
        }
    }

    /// Releases the lease and, if it was the last one, blocks until the server has stopped: some 50 ms for a throwaway, the
    /// time of a checkpoint for a kept one, and never longer than [`Builder::start_timeout`](crate::Builder::start_timeout).
    ///
    /// When two processes release the last two leases at the same moment, both may get [`Released::StillShared`].
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] if the server does not stop. The lease is released in any case.
    pub fn release(self) -> Result<Released, Error> {
        let deadline = Deadline::after(self.timeout);
        let account = &self.folder.account;
        let running = LockFile::open(&self.folder.running_lock(), account)?;
        let start =
            LockFile::take(&self.folder.start_lock(), Mode::Exclusive, account, deadline, Phase::Starter)?;
        let (Some(running), Some(_start)) = (running, start) else {
            // The folder was removed under a running server; the supervisor stops the server all the same.
            return Ok(Released::Stopped);
        };
        // If the exclusive lock fails, another process has a lease; if the shared lock fails, too, the supervisor has taken the
        // lock meanwhile.
        if !self.lease.try_take(Mode::Exclusive)? && self.lease.try_take(Mode::Shared)? {
            return Ok(Released::StillShared);
        }
        self.lease.unlock()?;
        deadline.poll(Phase::Stop, || Ok(running.try_take(Mode::Exclusive)?.then_some(())))?;
        // The throwaway's folder or the server still exists only if the supervisor was killed.
        if running.is_current() && self.lease.try_take(Mode::Exclusive)? {
            orphan::finish(&self.folder, deadline)?;
        }
        Ok(Released::Stopped)
    }
}

/// Encodes all but RFC 3986's unreserved characters.
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
    fn special_characters_of_an_address_are_encoded() {
        assert_eq!(percent_encoded("/tmp/a b&c?d=é".as_bytes()), "%2Ftmp%2Fa%20b%26c%3Fd%3D%C3%A9");
    }
}
