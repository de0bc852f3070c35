//! The process, its folder, and the removal of both, also by a [`Guard`] when the test process is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::account::Account;
use super::ini::{self, Ini};
use super::program::Program;
use crate::error::Error;
use crate::guard::{self, Guard};

/// The prefix of all folders' names.
const PREFIX: &str = "db-testkit-pgbouncer-";

/// The smallest `sun_path` of all systems, without its terminating zero, and the length of the path below the base.
const PATH_LIMIT: usize = 103;
const NAME_LENGTH: usize = "/db-testkit-pgbouncer-0123456789/.s.PGSQL.6432".len();

/// How much of the end of the log goes into an error.
const TAIL_LINES: usize = 8;

#[derive(Debug)]
pub(super) struct Process {
    account: Account,
    program: PathBuf,
    guard: Guard,
    log: File,
    /// The length of the log before the last start, in bytes.
    log_start: u64,
    running: Option<Child>,
}

impl Process {
    /// Prepares everything but the process itself.
    pub(super) fn prepare(account: Account, program: &Program, ini: &Ini) -> Result<Process, Error> {
        let guard = Guard::over(place(account)?, "KILL").map_err(failed("make a folder and its guard"))?;
        let (program, log) = write_files(account, program, ini, guard.folder())?;
        Ok(Process { account, program, guard, log, log_start: 0, running: None })
    }

    pub(super) fn folder(&self) -> &Path {
        self.guard.folder()
    }

    pub(super) fn pid(&mut self) -> Option<u32> {
        let running = self.running.as_mut()?;
        matches!(running.try_wait(), Ok(None)).then(|| running.id())
    }

    pub(super) fn log(&self) -> Result<String, Error> {
        read(&self.folder().join("log"), 0).map_err(failed("read the log"))
    }

    /// Kills the process if it runs, and starts it.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        self.kill()?;
        self.log_start = self.log.metadata().map_err(failed("read the length of the log"))?.len();
        let log = || self.log.try_clone().map_err(failed("open the log again"));
        let ini = self.folder().join(ini::FILE);
        let mut command = guard::gate(self.account.command("/bin/sh"), &self.program, &[ini.as_os_str()]);
        let child = command.stdout(log()?).stderr(log()?).spawn().map_err(failed("start the process"))?;
        let pid = child.id();
        // Dropping this value kills it from now on.
        let running = self.running.insert(child);
        self.guard.watch([pid]).map_err(failed("write to the guard shell"))?;
        guard::open(running).map_err(failed("release the process"))
    }

    /// Whether clients can connect; an error if the process has ended.
    pub(super) fn listens(&mut self) -> Result<bool, Error> {
        if self.pid().is_none() {
            let log = read(&self.folder().join("log"), self.log_start).map_err(failed("read the log"))?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            return Err(Error::PgBouncerFailed { log: tail });
        }
        let socket = self.folder().join(format!(".s.PGSQL.{}", ini::PORT));
        match UnixStream::connect(socket) {
            Ok(_) => Ok(true),
            // No socket yet, or that of the killed predecessor.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(false)
            }
            Err(error) => Err(failed("connect to the socket")(error)),
        }
    }

    pub(super) fn kill(&mut self) -> Result<(), Error> {
        self.guard.kill(&mut self.running).map_err(failed("kill the process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "the guard has to kill PgBouncer");
        }
    }
}

/// A path for the folder: the account must be able to use it, and the socket's path must be short enough.
fn place(account: Account) -> Result<PathBuf, Error> {
    let candidates = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")];
    let base = candidates
        .into_iter()
        .filter_map(|base| base.canonicalize().ok())
        .find(|base| base.as_os_str().len() + NAME_LENGTH <= PATH_LIMIT && account.can_work_in(base))
        .ok_or_else(|| failed("find a temporary folder")(ErrorKind::PermissionDenied.into()))?;
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
    Ok(base.join(format!("{PREFIX}{random}")))
}

/// Writes the files, and then changes their owner: before that, the account cannot replace them by links.
fn write_files(
    account: Account,
    program: &Program,
    ini: &Ini,
    folder: &Path,
) -> Result<(PathBuf, File), Error> {
    let write = |path: &Path, content: &[u8], mode: u32| -> io::Result<File> {
        let mut file = OpenOptions::new().append(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        give(account, path)?;
        Ok(file)
    };
    for (path, content) in ini.files(folder) {
        write(&path, &content, 0o600).map_err(failed("write the configuration"))?;
    }
    let log = write(&folder.join("log"), b"", 0o600).map_err(failed("make a log"))?;
    let path = if program.is_out_of_reach {
        let copy = folder.join("pgbouncer");
        copy_program(&program.path, &copy).map_err(failed("copy the program"))?;
        give(account, &copy).map_err(failed("change the owner of the program"))?;
        copy
    } else {
        program.path.clone()
    };
    give(account, folder).map_err(failed("change the owner of the folder"))?;
    Ok((path, log))
}

/// Copies by `cp`, and not in this process: a child that another thread starts meanwhile would inherit the file open for
/// writing, and such a program cannot be run ("text file busy").
fn copy_program(program: &Path, copy: &Path) -> io::Result<()> {
    let copied = Account::OURS.command("cp").args([program, copy]).stdin(Stdio::null()).output()?;
    if copied.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&copied.stderr).into_owned()))
}

fn give(account: Account, path: &Path) -> io::Result<()> {
    account.ids().map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
}

fn read(path: &Path, from: u64) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::PgBouncer { action, source }
}
