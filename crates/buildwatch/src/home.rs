//! The data folder, and the key in it.
//!
//! Everything is checked before anything is changed: files and folders that others could have made, or could replace later, are
//! refused and left as they are.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use db_layer::encryption::Key;
use nix::libc::O_NONBLOCK;
use nix::unistd::geteuid;
use secrecy::ExposeSecret;

/// A key's file is much shorter than this.
const LONGEST: u64 = 4 << 10;

/// The folder named on the command line, else the platform's; made if it does not exist. Other users cannot read it.
pub(crate) fn data_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = choose(given)?;
    make(&dir).with_context(|| format!("cannot use the data folder {}", dir.display()))?;
    Ok(dir)
}

/// Whether the embedded server, which root runs as another user, could reach an existing or new data folder.
pub(crate) fn check_way(given: Option<&Path>) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let dir = choose(given)?;
    // Only permissions for all users are checked; the server itself finds out about groups and owners.
    let is_closed =
        |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.uid() == 0 && found.mode() & 0o011 == 0);
    if let Some(closed) = dir.ancestors().skip(1).find(|folder| is_closed(folder)) {
        let (closed, dir) = (closed.display(), dir.display());
        bail!(
            "the user that PostgreSQL runs as, because it refuses to run as root, cannot pass through {closed} to {dir}: \
             choose a folder elsewhere, such as /var/lib, or allow it: chmod o+x {closed}"
        );
    }
    Ok(())
}

/// The folder of the embedded server's data, in a data folder that the server's account can pass through.
pub(crate) fn server_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    // Root runs the server as another user. The files in the folder stay readable by root only.
    let open_to_all = |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o001 != 0);
    let is_closed_here_only = !open_to_all(dir) && dir.ancestors().skip(1).all(open_to_all);
    if geteuid().is_root() && is_closed_here_only {
        let mode = fs::metadata(dir)?.mode() & 0o7777;
        fs::set_permissions(dir, Permissions::from_mode(mode | 0o011))
            .with_context(|| format!("cannot open {} to the embedded server", dir.display()))?;
    }
    Ok(dir.join("postgres"))
}

fn make(dir: &Path) -> anyhow::Result<()> {
    let missing = missing(dir)?;
    if let Some(above) = missing.last().copied().unwrap_or(dir).parent() {
        check_parent(above)?;
    }
    // The embedded server's account has to pass through all of them.
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    for folder in missing.into_iter().rev() {
        match DirBuilder::new().mode(mode).create(folder) {
            // The umask may have removed permissions.
            Ok(()) => fs::set_permissions(folder, Permissions::from_mode(mode))?,
            // Another process made it first.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", folder.display())),
        }
    }
    check(&fs::metadata(dir)?)
}

/// The folders to make, from the last one up.
fn missing(dir: &Path) -> anyhow::Result<Vec<&Path>> {
    let mut missing = Vec::new();
    for folder in dir.ancestors() {
        match fs::metadata(folder) {
            Ok(_) => break,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| folder.display().to_string());
            }
            Err(_) if folder.is_symlink() => bail!("{} is a symbolic link to nothing", folder.display()),
            Err(_) => missing.push(folder),
        }
    }
    Ok(missing)
}

/// Fails if others could put a key into the folder, or could have done so.
fn check(folder: &Metadata) -> anyhow::Result<()> {
    if !folder.is_dir() {
        bail!("it is not a folder");
    }
    check_owner(folder)?;
    let mode = folder.mode() & 0o7777;
    if mode & 0o022 != 0 {
        bail!(
            "others may write to it (mode {mode:04o}), and could have put their own key in it: run chmod go-w, and check what is in it"
        );
    }
    Ok(())
}

/// Fails if others could replace a folder in this one.
fn check_parent(folder: &Path) -> anyhow::Result<()> {
    let mode = fs::metadata(folder)?.mode() & 0o7777;
    // In a sticky folder, such as /tmp, users can rename only their own files.
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        let folder = folder.display();
        bail!(
            "every user could replace it, since every user may write to {folder} (mode {mode:04o}): run chmod o-w {folder}"
        );
    }
    Ok(())
}

fn check_owner(found: &Metadata) -> anyhow::Result<()> {
    let us = geteuid().as_raw();
    if found.uid() != us && found.uid() != 0 {
        bail!("it belongs to the user id {}, and buildwatch runs as {us}", found.uid());
    }
    Ok(())
}

fn choose(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        return std::path::absolute(dir).with_context(|| format!("--data {}", dir.display()));
    }
    // No other user can enter root's home, and the embedded server must not run as root.
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/buildwatch"));
    }
    let Some(dirs) = directories::ProjectDirs::from("", "", "buildwatch") else {
        bail!("this user has no home folder: name a data folder with --data");
    };
    Ok(dirs.data_dir().to_owned())
}

/// The key that plans are sealed under: made at the first use, readable by this user only.
///
/// Processes on several machines that share a database need the same file.
pub(crate) fn key(dir: &Path) -> anyhow::Result<Key> {
    let path = dir.join("key");
    let read = || read_key(&path).with_context(|| format!("cannot use the key in {}", path.display()));
    if let Some(key) = read()? {
        return Ok(key);
    }
    if let Some(fresh) =
        make_key(dir, &path).with_context(|| format!("cannot make the key in {}", path.display()))?
    {
        return Ok(fresh);
    }
    // Another process made a key first: then that is the key.
    read()?.with_context(|| format!("the key in {} has been removed", path.display()))
}

/// The key in a file; `None` if there is no such file.
fn read_key(path: &Path) -> anyhow::Result<Option<Key>> {
    // Without O_NONBLOCK, opening a named pipe waits for a writer.
    let file = match OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => bail!("it is a symbolic link to {}, which does not exist", target.display()),
            Err(_) => return Ok(None),
        },
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        bail!("it is not a file");
    }
    if found.len() > LONGEST {
        bail!("it is too long for a key");
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    let key = Key::from_hex(&text)?;
    check_owner(&found)?;
    // As PostgreSQL's rule for a server's key: root's file may be readable by a group.
    let may_be = if found.uid() == geteuid().as_raw() { 0o600 } else { 0o640 };
    let mode = found.mode() & 0o777;
    if mode & !may_be & 0o077 != 0 {
        bail!(
            "others may read or write it (mode {mode:04o}): run chmod {may_be:03o}, and make a new key if another user may have read it"
        );
    }
    Ok(Some(key))
}

/// Makes a key; `None` if another process made one first.
fn make_key(dir: &Path, path: &Path) -> anyhow::Result<Option<Key>> {
    let fresh = Key::generate()?;
    let draft = dir.join(format!("key.{}.{:?}", std::process::id(), std::thread::current().id()));
    let made = write_private(&draft, fresh.to_hex().expose_secret())
        // A link, unlike a rename, fails if the file exists.
        .and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft).ok();
    match made {
        Ok(()) => {
            File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| dir.display().to_string())?;
            Ok(Some(fresh))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // A killed process may have left a draft of the same name; writing through a link would write elsewhere.
    fs::remove_file(path).ok();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_callers_get_the_same_key_and_no_other_user_may_read_it() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = data_dir(Some(&parent.path().join("data"))).expect("a data folder");

        let ids: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| key(&dir).expect("a key").id())).collect();
            asking.into_iter().map(|asked| asked.join().expect("no panic")).collect()
        });

        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let mode = fs::metadata(dir.join("key")).expect("the key's file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).expect("the folder").count(), 1, "drafts are left");
    }

    #[test]
    fn a_damaged_key_is_an_error_that_names_the_file_and_not_the_key() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("key"), "0badc0de").expect("written");

        let error = format!("{:#}", key(dir.path()).expect_err("a short key"));

        assert!(error.contains("key") && error.contains("16 or 32 bytes"), "{error}");
        assert!(!error.contains("0badc0de"), "{error}");
    }
}
