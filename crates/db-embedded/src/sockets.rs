//! The folder of the socket, whose path the kernel limits to about 100 bytes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, make_private_dir, random_name};
use crate::pidfile::PidFile;
use crate::place::{prefix, temp_base};
use crate::settings::PORT;

/// `sun_path` without its terminating zero.
const PATH_LIMIT: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The folder of the socket, which only the account can enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// In the server's folder.
    Inside(PathBuf),
    /// In a temporary folder of its own, since the path would be too long. Other processes read it from `postmaster.pid`.
    Elsewhere(PathBuf),
}

impl Sockets {
    pub(crate) fn make(folder: &Folder) -> Result<Sockets, Error> {
        let inside = folder.run();
        if inside.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len() <= PATH_LIMIT {
            return match make_private_dir(&inside, &folder.account) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(error).doing("make the folder", inside)
                }
                _ => Ok(Sockets::Inside(inside)),
            };
        }
        if let Some(left) = left_by_a_crash(folder)? {
            return Ok(Sockets::Elsewhere(left));
        }
        let name = format!("{}sockets.{}", prefix(&folder.account), random_name());
        let path = temp_base(&folder.account)?.join(name);
        folder.make_dir(&path)?;
        Ok(Sockets::Elsewhere(path))
    }

    /// The socket folder that a running server's `postmaster.pid` names, if this crate made it.
    pub(crate) fn recognise(folder: &Folder, named: &Path) -> Option<Sockets> {
        if named == folder.run() {
            return Some(Sockets::Inside(named.to_path_buf()));
        }
        let ours = format!("{}sockets.", prefix(&folder.account));
        named
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(ours.as_bytes()))
            .then(|| Sockets::Elsewhere(named.to_path_buf()))
    }

    pub(crate) fn path(&self) -> &Path {
        let (Sockets::Inside(path) | Sockets::Elsewhere(path)) = self;
        path
    }

    /// The folder to remove at the end.
    pub(crate) fn to_remove(&self) -> Option<&Path> {
        match self {
            Sockets::Inside(_) => None,
            Sockets::Elsewhere(path) => Some(path),
        }
    }
}

/// The socket folder that `postmaster.pid` names after server and supervisor were both killed.
fn left_by_a_crash(folder: &Folder) -> Result<Option<PathBuf>, Error> {
    Ok(PidFile::read(&folder.data())?.and_then(|file| file.socket_dir).filter(|path| {
        matches!(Sockets::recognise(folder, path), Some(Sockets::Elsewhere(_)))
            && fs::symlink_metadata(path).is_ok_and(|it| it.is_dir() && it.uid() == folder.account.uid())
    }))
}
