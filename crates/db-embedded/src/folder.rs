//! The layout of a server's folder.
//!
//! ```text
//! DIR/start      lock: held while a process starts or releases the server
//! DIR/lease      lock: shared by the users, exclusive by the process that stops the server
//! DIR/running    lock: held by the supervisor while it lives
//! DIR/starting   exists until the server was ready for the first time
//! DIR/version    the version of the programs that run the server
//! DIR/data/      PGDATA; made as data.new-<random>, so that an unfinished one is never used
//! DIR/run/       the socket, unless its path would be too long
//! DIR/log        output of the server and its supervisor
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Error, IoResultExt};
use crate::version::Version;

/// A larger log is moved to `log.old` at the next start.
const LOG_LIMIT: u64 = 10 * 1024 * 1024;

/// How much of the end of the log goes into an error.
const TAIL_LINES: usize = 8;

/// Whether the folder outlives the last lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Throwaway,
    Kept,
}

#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) account: Account,
}

impl Folder {
    pub(crate) fn start_lock(&self) -> PathBuf {
        self.path.join("start")
    }

    pub(crate) fn lease_lock(&self) -> PathBuf {
        self.path.join("lease")
    }

    pub(crate) fn running_lock(&self) -> PathBuf {
        self.path.join("running")
    }

    /// Notes that the server has not been ready yet: until then its death is a failed start.
    pub(crate) fn mark_starting(&self) -> Result<(), Error> {
        self.write(&self.path.join("starting"), "")
    }

    /// Removes the note. Each process that sees the server ready does it, since the one that wrote the note may have been
    /// killed.
    pub(crate) fn mark_started(&self) -> Result<(), Error> {
        let mark = self.path.join("starting");
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing("remove", mark),
            _ => Ok(()),
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The content of `PG_VERSION`; `None` if there is no data yet.
    pub(crate) fn made_by(&self) -> Result<Option<String>, Error> {
        read_if_there(&self.data().join("PG_VERSION")).map(|text| text.map(|text| text.trim().to_owned()))
    }

    /// The version of the server, for processes that joined it: the one on record, else that of the data.
    pub(crate) fn server_version(&self) -> Result<Version, Error> {
        let noted = self.version()?;
        let major = self.made_by()?.and_then(|text| Version::parse(&text));
        noted.or(major).ok_or_else(|| Error::NotRunning { folder: self.path.clone() })
    }

    /// The version of the programs that run the server.
    fn version(&self) -> Result<Option<Version>, Error> {
        Ok(read_if_there(&self.path.join("version"))?.and_then(|text| Version::parse(&text)))
    }

    pub(crate) fn set_version(&self, version: Version) -> Result<(), Error> {
        self.write(&self.path.join("version"), &format!("{version}\n"))
    }

    /// Replaces a file by one that only the account can read.
    ///
    /// It writes a new file and renames it: the account may have put a link at `path`, and root must not write through it.
    pub(crate) fn write(&self, path: &Path, content: &str) -> Result<(), Error> {
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".new-{}", random_name()));
        let new = PathBuf::from(new);
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            self.give(&file)?;
            file.write_all(content.as_bytes())?;
            fs::rename(&new, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written.doing("write", path)
    }

    /// Makes a folder that only the account can enter.
    pub(crate) fn make_dir(&self, path: &Path) -> Result<(), Error> {
        make_private_dir(path, &self.account).doing("make the folder", path)
    }

    /// Opens the log for appending, and returns its length.
    pub(crate) fn open_log(&self) -> Result<(File, u64), Error> {
        let path = self.log();
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
            fs::rename(&path, self.path.join("log.old")).doing("move aside", &path)?;
        }
        let open = || {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&path)?;
            self.give(&file)?;
            let end = file.metadata()?.len();
            Ok((file, end))
        };
        open().doing("open", &path)
    }

    /// The last lines of the log after byte `from`.
    pub(crate) fn log_since(&self, from: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.log())?;
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(from))?;
            file.take(64 * 1024).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
                lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
            }
            Err(error) => format!("(the log {} cannot be read: {error})", self.log().display()),
        }
    }

    /// Removes the folder: a rename first, so that other processes see it whole or not at all. Blocks while 40 MB are deleted.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let mut gone = self.path.as_os_str().to_owned();
        gone.push(format!(".gone-{}", random_name()));
        match fs::rename(&self.path, &gone) {
            Ok(()) => fs::remove_dir_all(&gone).doing("remove", gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).doing("remove", &self.path),
        }
    }

    fn give(&self, file: &File) -> io::Result<()> {
        if self.account.is_other() {
            fchown(file, Some(self.account.uid()), Some(self.account.gid()))?;
        }
        Ok(())
    }
}

pub(crate) fn random_name() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).map(|c| c.to_ascii_lowercase()).take(10).collect()
}

/// Makes a folder of mode 0700 for the account. Fails if the folder exists.
pub(crate) fn make_private_dir(path: &Path, account: &Account) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    // The umask may have removed permissions.
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    if account.is_other() {
        // At the end: once the account owns the folder, it could replace it by something else.
        chown(path, Some(account.uid()), Some(account.gid()))?;
    }
    Ok(())
}

fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing("read", path),
    }
}
