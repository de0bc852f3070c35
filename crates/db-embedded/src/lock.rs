//! The lock files of a folder: `flock(2)`, which the kernel releases when the process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::deadline::Deadline;
use crate::error::{Error, IoResultExt};
use crate::phase::Phase;

/// Whether other holders are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Exclusive,
    Shared,
}

/// An open lock file. Dropping it releases the lock. As every file of the standard library, it is closed in child processes, so
/// a child cannot keep a lease that its parent dropped.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Opens the file, and makes it if it does not exist; `None` if the folder is gone.
    pub(crate) fn open(path: &Path, account: &Account) -> Result<Option<LockFile>, Error> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Root works in a folder of an unprivileged account here, and must not follow a link that the account put there.
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing("open", path),
        };
        let metadata = file.metadata().doing("inspect", path)?;
        if account.is_other() && metadata.uid() == account.client_uid() && metadata.nlink() == 1 {
            fchown(&file, Some(account.uid()), Some(account.gid())).doing("change the owner of", path)?;
        }
        Ok(Some(LockFile { file, path: path.to_path_buf() }))
    }

    /// Takes the lock, or returns false if another process holds it. A lock held in the other mode is released.
    pub(crate) fn try_take(&self, mode: Mode) -> Result<bool, Error> {
        let taken = match mode {
            Mode::Exclusive => self.file.try_lock(),
            Mode::Shared => self.file.try_lock_shared(),
        };
        match taken {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error).doing("lock", &self.path),
        }
    }

    /// Releases the lock and keeps the file open.
    pub(crate) fn unlock(&self) -> Result<(), Error> {
        self.file.unlock().doing("unlock", &self.path)
    }

    /// Whether the open file is still the one at its path: the folder may have been removed and made again.
    pub(crate) fn is_current(&self) -> bool {
        match (self.file.metadata(), self.path.symlink_metadata()) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Opens the file and takes the lock before the deadline; `None` if the locked file is no longer the one at its path.
    pub(crate) fn take(
        path: &Path,
        mode: Mode,
        account: &Account,
        deadline: Deadline,
        phase: Phase,
    ) -> Result<Option<LockFile>, Error> {
        let Some(file) = LockFile::open(path, account)? else {
            return Ok(None);
        };
        let taken = deadline.poll(phase, || {
            let taken = file.try_take(mode)?;
            Ok(if file.is_current() { taken.then_some(true) } else { Some(false) })
        })?;
        Ok(taken.then_some(file))
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// How often this process has the file open.
    fn times_open(path: &Path) -> usize {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|file| file == path)).count()
    }

    #[test]
    fn a_wait_for_a_folder_that_was_replaced_begins_again() {
        let base = tempfile::tempdir().unwrap();
        let (folder, account) = (base.path().join("server"), Account::find().unwrap());
        fs::create_dir(&folder).unwrap();
        let path = folder.join("lease");
        let deadline = Deadline::after(Duration::from_secs(30));
        let take = || LockFile::take(&path, Mode::Shared, &account, deadline, Phase::PreviousServer).unwrap();
        let supervisor = LockFile::open(&path, &account).unwrap().unwrap();
        assert!(supervisor.try_take(Mode::Exclusive).unwrap());

        let got = thread::scope(|scope| {
            let waiting = scope.spawn(take);
            let opened = || Ok((times_open(&path) == 2).then_some(()));
            deadline.poll(Phase::PreviousServer, opened).unwrap();
            fs::rename(&folder, base.path().join("server.gone")).unwrap();
            fs::create_dir(&folder).unwrap();
            fs::write(&path, "").unwrap();
            drop(supervisor);
            waiting.join().unwrap()
        });

        assert!(got.is_none(), "{got:?} is locked, and is not at its path");
        assert!(take().is_some());
    }
}
