//! Chooses the folder of a server, and makes sure that it is ours.

use std::env;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind, make_private_dir, random_name};

/// What a kept folder may hold before we have used it: our own layout, and what a file system of its own brings.
const EXPECTED: [&str; 9] =
    ["start", "lease", "running", "starting", "version", "data", "run", "log", "lost+found"];

/// Which server was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Private,
    Shared(String),
    Kept(PathBuf),
}

impl Place {
    /// Makes the folder when it is not there. A private one is another one each time.
    pub(crate) fn open(&self, account: &Account) -> Result<Folder, Error> {
        let (path, kind) = match self {
            Place::Private => (make_private(account)?, Kind::Throwaway),
            Place::Shared(name) => (open_shared(name, account)?, Kind::Throwaway),
            Place::Kept(folder) => (open_kept(folder, account)?, Kind::Kept),
        };
        Ok(Folder { path, kind, account: account.clone() })
    }
}

/// What the names of all temporary folders of this user begin with.
pub(crate) fn prefix(account: &Account) -> String {
    format!("db-embedded-{}-", account.client_uid())
}

/// The folder for temporary files, or another one when the account cannot work there: the end of a throwaway server is
/// that its own account removes its folder.
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

fn make_private(account: &Account) -> Result<PathBuf, Error> {
    let base = temp_base(account)?;
    loop {
        let path = base.join(format!("{}private.{}", prefix(account), random_name()));
        match make_private_dir(&path, account) {
            Ok(()) => return Ok(path),
            // A sweep took it for a leftover, before it was given to the account and locked.
            Err(error) if error.kind() == io::ErrorKind::NotFound && base.exists() => {}
            Err(error) => return Err(error).doing("make the folder", path),
        }
    }
}

fn open_shared(name: &str, account: &Account) -> Result<PathBuf, Error> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if !(1..=32).contains(&name.len()) || !name.chars().all(allowed) {
        return Err(Error::InvalidName { name: name.to_owned() });
    }
    let path = temp_base(account)?.join(format!("{}{name}", prefix(account)));
    match make_private_dir(&path, account) {
        Ok(()) => return Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // Swept meanwhile, as above; whoever opens the lock file in it finds out.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::exists) => {
            return Ok(path);
        }
        Err(error) => return Err(error).doing("make the folder", path),
    }
    // The name is no secret: somebody else may have been there first, to get at our data or to be in our way.
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() && metadata.uid() == account.uid() => Ok(path),
        // Root that was killed between making it and giving it away.
        Ok(metadata) if metadata.is_dir() && metadata.uid() == account.client_uid() => {
            chown(&path, Some(account.uid()), Some(account.gid())).doing("change the owner of", &path)?;
            Ok(path)
        }
        Ok(metadata) => Err(Error::NotOurs { folder: path, why: belongs_to(&metadata) }),
        // Its last user just left; whoever opens the lock file in it finds out.
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
        refuse_strangers(&path)?;
    }
    // The account must get through, and nobody else. As root the folder stays ours, with the account's group.
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

/// Its mode is about to change: not in a folder that somebody uses for something else.
fn refuse_strangers(path: &Path) -> Result<(), Error> {
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
        "it is no folder".into()
    }
}
