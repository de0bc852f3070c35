//! The data folder, and the key in it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use db_layer::encryption::Key;
use secrecy::ExposeSecret;

/// The folder that a command line names, else the platform's; made if it is not there. Others may not look into it.
pub(crate) fn data_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = choose(given)?;
    make(&dir).with_context(|| format!("cannot make the data folder {}", dir.display()))?;
    Ok(dir)
}

/// Where the embedded server keeps its data.
pub(crate) fn server_dir(dir: &Path) -> PathBuf {
    dir.join("postgres")
}

fn make(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if nix::unistd::geteuid().is_root() {
        // The embedded server runs as another user then, who has to pass through to its own folder; what lies here is
        // still readable by root only.
        let permissions = fs::metadata(dir)?.permissions();
        fs::set_permissions(dir, Permissions::from_mode(permissions.mode() | 0o011))?;
    }
    Ok(())
}

fn choose(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        return std::path::absolute(dir).with_context(|| format!("--data {}", dir.display()));
    }
    // Root's own folder can be entered by nobody else, and the embedded server must not run as root.
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/buildwatch"));
    }
    let Some(dirs) = directories::ProjectDirs::from("", "", "buildwatch") else {
        bail!("this user has no home folder: name a data folder with --data");
    };
    Ok(dirs.data_dir().to_owned())
}

/// The key that plans are sealed under: made on first use, readable by this user only.
///
/// Services on several machines that share a database share this file, too.
pub(crate) fn key(dir: &Path) -> anyhow::Result<Key> {
    let path = dir.join("key");
    match fs::read_to_string(&path) {
        Ok(text) => return Key::from_hex(&text).with_context(|| format!("the key in {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the key in {}", path.display()));
        }
    }

    let fresh = Key::generate()?;
    let draft = dir.join(format!("key.{}.{:?}", std::process::id(), std::thread::current().id()));
    let made = write_private(&draft, fresh.to_hex().expose_secret())
        // A link, unlike a rename, fails when somebody else was quicker: then theirs is the key.
        .and_then(|()| fs::hard_link(&draft, &path));
    fs::remove_file(&draft).ok();
    match made {
        Ok(()) => {
            File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| dir.display().to_string())?;
            Ok(fresh)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => key(dir),
        Err(error) => Err(error).with_context(|| format!("cannot make the key in {}", path.display())),
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_who_asks_at_once_gets_the_same_key_and_nobody_else_may_read_it() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = data_dir(Some(&parent.path().join("data"))).expect("a data folder");

        let ids: Vec<[u8; 4]> = std::thread::scope(|scope| {
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
