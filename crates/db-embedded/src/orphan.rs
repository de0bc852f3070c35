//! Cleans up after a killed supervisor: a server without one, or a folder that was not removed.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::Deadline;
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind};
use crate::lock::{LockFile, Mode};
use crate::phase::Phase;
use crate::pidfile::PidFile;
use crate::place::prefix;
use crate::sockets::Sockets;

/// A live server in the folder, without a supervisor.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    pub(crate) sockets: Sockets,
}

impl Orphan {
    /// Looks for an orphan. A live server that this crate did not start is an error. The caller must know that no supervisor
    /// runs.
    pub(crate) fn find(folder: &Folder, deadline: Deadline) -> Result<Option<Orphan>, Error> {
        let data = folder.data();
        // A server that has just started may not have written its socket folder yet.
        let file = deadline.poll(Phase::Ready, || {
            let alive = PidFile::read(&data)?.filter(|file| file.is_alive_in(&data));
            Ok(match alive {
                Some(file) if file.socket_dir.is_none() && !file.ready => None,
                settled => Some(settled),
            })
        })?;
        let Some(file) = file else {
            return Ok(None);
        };
        match file.socket_dir.and_then(|path| Sockets::recognise(folder, &path)) {
            Some(sockets) => Ok(Some(Orphan { pid: file.pid, sockets })),
            None => Err(Error::InUse { folder: data, pid: file.pid }),
        }
    }

    /// Stops the server with the supervisor's signal, and waits for its end.
    fn stop(&self, folder: &Folder, deadline: Deadline) -> Result<(), Error> {
        let signal = match folder.kind {
            Kind::Throwaway => Signal::SIGQUIT,
            Kind::Kept => Signal::SIGINT,
        };
        let data = folder.data();
        if let Ok(pid) = i32::try_from(self.pid) {
            // It may be gone already; the loop below sees that.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        deadline.poll(Phase::Stop, || {
            let alive =
                PidFile::read(&data)?.is_some_and(|file| file.pid == self.pid && file.is_alive_in(&data));
            Ok((!alive).then_some(()))
        })?;
        if let Some(path) = self.sockets.to_remove() {
            fs::remove_dir_all(path).doing("remove", path)?;
        }
        Ok(())
    }
}

/// Stops the server and removes the folder in place of a killed supervisor. The caller holds the lease exclusively, and knows
/// that no supervisor runs.
pub(crate) fn finish(folder: &Folder, deadline: Deadline) -> Result<(), Error> {
    if let Some(orphan) = Orphan::find(folder, deadline)? {
        orphan.stop(folder, deadline)?;
    }
    match folder.kind {
        Kind::Throwaway => folder.remove(),
        Kind::Kept => Ok(()),
    }
}

/// Removes this user's throwaway folders beside this one that no process holds. Failures are only logged, since they do not
/// concern this server.
pub(crate) fn sweep_beside(folder: &Folder, deadline: Deadline) {
    let Some(base) = folder.path.parent() else { return };
    let prefix = prefix(&folder.account);
    let sockets = format!("{prefix}sockets.");
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // Folders owned by root are those whose maker was killed before it changed the owner.
        let owners = [folder.account.uid(), folder.account.client_uid()];
        let ours = entry.metadata().is_ok_and(|it| it.is_dir() && owners.contains(&it.uid()));
        if !ours || !name.starts_with(&prefix) || name.starts_with(&sockets) || entry.path() == folder.path {
            continue;
        }
        let left = Folder { path: entry.path(), ..folder.clone() };
        let swept = if name.contains(".gone-") {
            // Already renamed: its supervisor may be deleting it right now, so a failure means nothing.
            let _ = fs::remove_dir_all(&left.path);
            Ok(())
        } else {
            sweep(&left, deadline)
        };
        if let Err(error) = swept {
            tracing::debug!(folder = %left.path.display(), %error, "cannot remove a leftover folder");
        }
    }
}

fn sweep(left: &Folder, deadline: Deadline) -> Result<(), Error> {
    let mut held = Vec::new();
    // In the order that every process keeps.
    for path in [left.start_lock(), left.lease_lock(), left.running_lock()] {
        match LockFile::open(&path, &left.account)? {
            Some(lock) if lock.try_take(Mode::Exclusive)? && lock.is_current() => held.push(lock),
            _ => return Ok(()),
        }
    }
    tracing::debug!(folder = %left.path.display(), "removing the folder of a killed supervisor");
    finish(left, deadline)
}
