//! `postmaster.pid`, in which a running server describes itself.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::error::{Error, IoResultExt};

/// The lines of the file that this crate reads. A killed server leaves the file behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PidFile {
    /// Line 1.
    pub(crate) pid: u32,
    /// Line 4.
    pub(crate) port: u16,
    /// Line 5: the first socket folder, once there is one.
    pub(crate) socket_dir: Option<PathBuf>,
    /// Line 8 is `ready`.
    pub(crate) ready: bool,
}

impl PidFile {
    /// `None` if there is no file, or if it is half written.
    pub(crate) fn read(data: &Path) -> Result<Option<PidFile>, Error> {
        let path = data.join("postmaster.pid");
        match fs::read(&path) {
            Ok(bytes) => Ok(PidFile::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing("read", path),
        }
    }

    fn parse(bytes: &[u8]) -> Option<PidFile> {
        let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let text =
            |line: usize| lines.get(line - 1).and_then(|line| str::from_utf8(line).ok()).map(str::trim);
        Some(PidFile {
            pid: text(1)?.parse().ok()?,
            port: text(4).and_then(|port| port.parse().ok()).unwrap_or(0),
            socket_dir: lines
                .get(4)
                .filter(|line| !line.is_empty())
                .map(|line| PathBuf::from(std::ffi::OsString::from_vec(line.to_vec()))),
            ready: text(8) == Some("ready"),
        })
    }

    /// Removes the file if its process is alive but no server on `data`: PostgreSQL would take it for a server and refuse to
    /// start. The file of a dead process stays, since PostgreSQL reads there what it has to clean up.
    pub(crate) fn remove_if_stale(data: &Path) -> Result<(), Error> {
        match PidFile::read(data)? {
            Some(file) if process_exists(file.pid) && !file.is_alive_in(data) => {
                let path = data.join("postmaster.pid");
                tracing::warn!(file = %path.display(), pid = file.pid, "removing the pid file of a dead server: another process has its pid now");
                fs::remove_file(&path).doing("remove", path)
            }
            _ => Ok(()),
        }
    }

    /// Whether the process that wrote the file is alive and works in `data`.
    ///
    /// A process id alone proves nothing: after a crash or a reboot another process may have it. A server's working folder is
    /// its data folder; where that cannot be read, a live process counts as the server.
    pub(crate) fn is_alive_in(&self, data: &Path) -> bool {
        if !process_exists(self.pid) {
            return false;
        }
        match (fs::metadata(format!("/proc/{}/cwd", self.pid)), fs::metadata(data)) {
            (Ok(its), Ok(ours)) => (its.dev(), its.ino()) == (ours.dev(), ours.ino()),
            (Err(error), _)
                if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self").exists() =>
            {
                false
            }
            _ => true,
        }
    }

    /// Whether the server says that it is ready, and answers at its socket. A crashed server may leave the first behind.
    pub(crate) fn accepts_connections(&self) -> bool {
        self.ready
            && process_exists(self.pid)
            && self.socket_dir.as_ref().is_some_and(|folder| {
                UnixStream::connect(folder.join(format!(".s.PGSQL.{}", self.port))).is_ok()
            })
    }
}

/// Also true of a process that we may not signal.
fn process_exists(pid: u32) -> bool {
    i32::try_from(pid)
        .is_ok_and(|pid| pid > 0 && kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_read() {
        let file =
            PidFile::parse(b"4711\n/d/data\n1795000000\n5432\n/d/run\n\n  123  456\nready   \n").unwrap();

        assert_eq!((file.pid, file.port, file.ready), (4711, 5432, true));
        assert_eq!(file.socket_dir.as_deref(), Some(Path::new("/d/run")));
    }

    #[test]
    fn a_file_in_the_making_is_not_ready() {
        let file = PidFile::parse(b"4711\n/d/data\n1795000000\n5432\n\n").unwrap();

        assert_eq!((file.ready, file.socket_dir), (false, None));
        assert_eq!(PidFile::parse(b""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_stranger_with_the_same_process_id_is_not_the_server() {
        let file = PidFile { pid: std::process::id(), port: 5432, socket_dir: None, ready: true };

        assert!(
            !file.is_alive_in(Path::new("/")),
            "the test does not run in / and yet counted as a server there"
        );
    }
}
