//! What is left when a supervisor was killed: a server without one, or a folder that nobody removed.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::{Deadline, Phase};
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind};
use crate::lock::{LockFile, Mode};
use crate::pidfile::PidFile;
use crate::place::prefix;
use crate::sockets::Sockets;

/// The live server in the folder, which has no supervisor.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    pub(crate) sockets: Sockets,
}

impl Orphan {
    /// Looks for one. A live server of somebody else is an error. The caller knows that there is no supervisor.
    pub(crate) fn find(folder: &Folder, deadline: Deadline) -> Result<Option<Orphan>, Error> {
        let data = folder.data();
        // It may have been started a moment ago, and not have said yet where its socket is.
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

    /// Stops it as its supervisor would have, and waits until it is gone.
    fn stop(&self, folder: &Folder, deadline: Deadline) -> Result<(), Error> {
        let signal = match folder.kind {
            Kind::Throwaway => Signal::SIGQUIT,
            Kind::Kept => Signal::SIGINT,
        };
        let data = folder.data();
        if let Ok(pid) = i32::try_from(self.pid) {
            // It may be gone already, which the loop below sees.
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

/// Does what a killed supervisor did not come to. The caller holds the lease exclusively, and knows that there is no
/// supervisor.
pub(crate) fn finish(folder: &Folder, deadline: Deadline) -> Result<(), Error> {
    if let Some(orphan) = Orphan::find(folder, deadline)? {
        orphan.stop(folder, deadline)?;
    }
    match folder.kind {
        Kind::Throwaway => folder.remove(),
        Kind::Kept => Ok(()),
    }
}

/// Removes the throwaway folders of this user that lie beside this one and that nobody holds. Failures are only logged:
/// they are somebody else's past, and no reason not to start a server.
pub(crate) fn sweep_beside(folder: &Folder, deadline: Deadline) {
    let Some(base) = folder.path.parent() else { return };
    let prefix = prefix(&folder.account);
    let sockets = format!("{prefix}sockets.");
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // Root's own are those whose maker was killed before it gave them away.
        let owners = [folder.account.uid(), folder.account.client_uid()];
        let ours = entry.metadata().is_ok_and(|it| it.is_dir() && owners.contains(&it.uid()));
        if !ours || !name.starts_with(&prefix) || name.starts_with(&sockets) || entry.path() == folder.path {
            continue;
        }
        let left = Folder { path: entry.path(), ..folder.clone() };
        let swept = if name.contains(".gone-") {
            // Had lost its name already. Its supervisor may be at it this moment, so what cannot be removed is no news.
            let _ = fs::remove_dir_all(&left.path);
            Ok(())
        } else {
            sweep(&left, deadline)
        };
        if let Err(error) = swept {
            tracing::debug!(folder = %left.path.display(), %error, "a leftover folder stays for now");
        }
    }
}

fn sweep(left: &Folder, deadline: Deadline) -> Result<(), Error> {
    let mut held = Vec::new();
    // In the order in which everybody takes them.
    for path in [left.start_lock(), left.lease_lock(), left.running_lock()] {
        match LockFile::open(&path, &left.account)? {
            Some(lock) if lock.try_take(Mode::Exclusive)? && lock.is_current() => held.push(lock),
            _ => return Ok(()),
        }
    }
    tracing::debug!(folder = %left.path.display(), "removing what a killed supervisor left");
    finish(left, deadline)
}
