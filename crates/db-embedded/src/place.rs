//! Chooses the folder of a server, and checks that it may be used.

use std::env;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind, make_private_dir, random_name};

/// Files that a kept folder may hold before its first use: our own layout, and what a file system brings.
const EXPECTED: [&str; 9] =
    ["start", "lease", "running", "starting", "version", "data", "run", "log", "lost+found"];

/// What a server in memory may need: its data, and a log of changes that is at most 1 GB by default.
const ROOM: u64 = 2 << 30;

/// Which server was requested.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Private,
    Shared(String),
    Kept(PathBuf),
}

impl Place {
    /// The folder, made if it does not exist. A private folder is a new one at each call. A throwaway one is in memory on request,
    /// if that has room, and if no other folder for temporary files is chosen.
    pub(crate) fn open(&self, account: &Account, in_memory: bool) -> Result<Folder, Error> {
        let base = || match memory(ROOM).filter(|_| in_memory && env::var_os("TMPDIR").is_none()) {
            Some(memory) => Ok(memory),
            None => temp_base(account),
        };
        let (path, kind) = match self {
            Place::Private => (make_private(&base()?, account)?, Kind::Throwaway),
            Place::Shared(name) => (open_shared(&base()?, name, account)?, Kind::Throwaway),
            Place::Kept(folder) => (open_kept(folder, account)?, Kind::Kept),
        };
        Ok(Folder { path, kind, account: account.clone() })
    }
}

/// What the names of all temporary folders of this user begin with.
pub(crate) fn prefix(account: &Account) -> String {
    format!("db-embedded-{}-", account.client_uid())
}

/// The folder for temporary files, or another one if the account cannot write there: at its end a throwaway server removes its
/// folder as that account.
pub(crate) fn temp_base(account: &Account) -> Result<PathBuf, Error> {
    let wanted = env::temp_dir();
    let usable = |base: &PathBuf| {
        !account.is_other()
            || (account.barrier(base).is_none() && base.metadata().is_ok_and(|it| account.may(0o3, &it)))
    };
    let candidates = [wanted.clone(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")];
    candidates.into_iter().filter_map(|base| fs::canonicalize(base).ok()).find(usable).ok_or_else(|| {
        Error::NotTraversable {
            ancestor: account.barrier(&wanted).unwrap_or_else(|| wanted.clone()),
            folder: wanted,
            user: account.name().to_owned(),
        }
    })
}

/// A file system in memory with that many bytes left, in which everybody may make folders. Containers often have one of 64 MB.
#[cfg(target_os = "linux")]
pub(crate) fn memory(room: u64) -> Option<PathBuf> {
    let path = Path::new("/dev/shm");
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let left = i128::from(found.blocks_available()) * i128::from(found.fragment_size());
    let is_open = path.metadata().ok()?.mode() & 0o1777 == 0o1777;
    (is_open && left >= i128::from(room)).then(|| path.to_owned())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn memory(_room: u64) -> Option<PathBuf> {
    None
}

fn make_private(base: &Path, account: &Account) -> Result<PathBuf, Error> {
    loop {
        let path = base.join(format!("{}private.{}", prefix(account), random_name()));
        match make_private_dir(&path, account) {
            Ok(()) => return Ok(path),
            // A sweep removed it as a leftover, before it was locked.
            Err(error) if error.kind() == io::ErrorKind::NotFound && base.exists() => {}
            Err(error) => return Err(error).doing("make the folder", path),
        }
    }
}

fn open_shared(base: &Path, name: &str, account: &Account) -> Result<PathBuf, Error> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if !(1..=32).contains(&name.len()) || !name.chars().all(allowed) {
        return Err(Error::InvalidName { name: name.to_owned() });
    }
    let path = base.join(format!("{}{name}", prefix(account)));
    match make_private_dir(&path, account) {
        Ok(()) => return Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // A sweep removed it, as above; the caller notices when it opens the lock file.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::exists) => {
            return Ok(path);
        }
        Err(error) => return Err(error).doing("make the folder", path),
    }
    // Others can guess the name: another user may have made the folder, to read our data or to block us.
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() && metadata.uid() == account.uid() => Ok(path),
        // Root was killed between making the folder and changing its owner.
        Ok(metadata) if metadata.is_dir() && metadata.uid() == account.client_uid() => {
            chown(&path, Some(account.uid()), Some(account.gid())).doing("change the owner of", &path)?;
            Ok(path)
        }
        Ok(metadata) => Err(Error::NotOurs { folder: path, why: belongs_to(&metadata) }),
        // Its last user just left; the caller notices when it opens the lock file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(error).doing("inspect", path),
    }
}

fn open_kept(folder: &Path, account: &Account) -> Result<PathBuf, Error> {
    fs::create_dir_all(folder).doing("make the folder", folder)?;
    let path = fs::canonicalize(folder).doing("find", folder)?;
    let metadata = path.metadata().doing("inspect", &path)?;
    if ![account.uid(), account.client_uid()].contains(&metadata.uid()) {
        return Err(Error::NotOurs { folder: path, why: belongs_to(&metadata) });
    }
    if path.as_os_str().as_encoded_bytes().contains(&b'\n') {
        return Err(Error::NotOurs {
            folder: path,
            why: "PostgreSQL cannot work below a name with a line break".into(),
        });
    }
    if let Some(parent) = path.parent()
        && let Some(ancestor) = account.barrier(parent)
    {
        return Err(Error::NotTraversable { folder: path, ancestor, user: account.name().to_owned() });
    }
    if !path.join("lease").exists() {
        refuse_other_content(&path)?;
    }
    // Only the account may enter. When root makes the folder, it stays root's, with the account's group.
    let root_owned = account.is_other() && metadata.uid() == account.client_uid();
    let mode = if root_owned { 0o710 } else { 0o700 };
    if root_owned && metadata.gid() != account.gid() {
        chown(&path, None, Some(account.gid())).doing("change the group of", &path)?;
    }
    if metadata.mode() & 0o7777 != mode {
        fs::set_permissions(&path, Permissions::from_mode(mode)).doing("change the mode of", &path)?;
    }
    Ok(path)
}

/// Refuses a folder with other files in it, since its mode is about to change.
fn refuse_other_content(path: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(path).doing("list", path)? {
        let name = entry.doing("list", path)?.file_name();
        let name = name.to_string_lossy();
        if !EXPECTED.contains(&&*name) && !name.starts_with("data.new-") {
            let why = format!("it holds {name:?}, and a server needs a folder of its own");
            return Err(Error::NotOurs { folder: path.to_path_buf(), why });
        }
    }
    Ok(())
}

fn belongs_to(metadata: &fs::Metadata) -> String {
    if metadata.is_dir() {
        format!("it belongs to the user id {}", metadata.uid())
    } else {
        "it is not a folder".into()
    }
}
