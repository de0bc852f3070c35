//! The process and its folder, and their end.
//!
//! Beside PgBouncer waits a shell on a pipe that only we hold open: it learns which process runs, and when we are gone, however
//! that came, it kills that process and removes the folder. It runs as we do and not as the account, for until it is
//! furnished the folder is ours.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::account::Account;
use super::ini::{self, Ini};
use super::program::Program;
use crate::error::Error;

/// Each line is the id of the process that runs now, or empty. `$0` is the folder.
const GUARD: &str =
    "while read -r line; do pid=$line; done; [ -z \"$pid\" ] || kill -KILL \"$pid\"; rm -rf \"$0\"";

/// Becomes the program when it is told to: not before the guard knows of it, for we may be killed in between.
const GATE: &str = "read -r go && exec \"$0\" \"$@\" </dev/null";

/// What the names of all folders begin with.
const PREFIX: &str = "db-testkit-pgbouncer-";

/// The shortest `sun_path` of all systems, without its terminating zero, and the length of what comes after the base.
const PATH_LIMIT: usize = 103;
const NAME_LENGTH: usize = "/db-testkit-pgbouncer-0123456789/.s.PGSQL.6432".len();

/// How much of the end of the log goes into an error.
const TAIL_LINES: usize = 8;

#[derive(Debug)]
pub(super) struct Process {
    account: Account,
    program: PathBuf,
    folder: PathBuf,
    guard: Child,
    log: File,
    /// Where the log of the last start begins, in bytes.
    log_start: u64,
    running: Option<Child>,
}

impl Process {
    /// Everything but the process itself.
    pub(super) fn prepare(account: Account, program: &Program, ini: &Ini) -> Result<Process, Error> {
        let folder = place(account)?;
        let mut guard = start_guard(&folder).map_err(failed("start a shell that waits for our end"))?;
        if let Err(error) = DirBuilder::new().mode(0o700).create(&folder) {
            // Before its input ends: what is there in this place is somebody else's.
            let ended = guard.kill().and_then(|()| guard.wait());
            return Err(failed("make its folder")(ended.err().unwrap_or(error)));
        }
        match furnish(account, program, ini, &folder) {
            Ok((program, log)) => {
                Ok(Process { account, program, folder, guard, log, log_start: 0, running: None })
            }
            Err(error) => {
                end(&mut guard);
                Err(error)
            }
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn pid(&mut self) -> Option<u32> {
        let running = self.running.as_mut()?;
        matches!(running.try_wait(), Ok(None)).then(|| running.id())
    }

    pub(super) fn log(&self) -> Result<String, Error> {
        read(&self.folder.join("log"), 0).map_err(failed("read the log"))
    }

    /// Starts it, after having killed it if it runs.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        self.kill()?;
        self.log_start = self.log.metadata().map_err(failed("look at the log"))?.len();
        let log = || self.log.try_clone().map_err(failed("open the log once more"));
        let mut command = self.account.command("/bin/sh");
        command.args([OsStr::new("-c"), GATE.as_ref(), self.program.as_os_str()]);
        command.arg(self.folder.join(ini::FILE)).stdin(Stdio::piped()).stdout(log()?).stderr(log()?);
        let mut child = command.spawn().map_err(failed("start it"))?;
        let gate = child.stdin.take();
        let pid = child.id();
        // Ends with this value from now on.
        self.running = Some(child);
        self.tell_guard(&format!("{pid}\n"))?;
        gate.map_or(Ok(()), |mut gate| gate.write_all(b"\n")).map_err(failed("let it begin"))
    }

    /// Whether clients can connect; an error when it has ended.
    pub(super) fn listens(&mut self) -> Result<bool, Error> {
        if self.pid().is_none() {
            let log = read(&self.folder.join("log"), self.log_start).map_err(failed("read the log"))?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            return Err(Error::PgBouncerFailed { log: tail });
        }
        let socket = self.folder.join(format!(".s.PGSQL.{}", ini::PORT));
        match UnixStream::connect(socket) {
            Ok(_) => Ok(true),
            // Not there yet; or there, and of its killed predecessor.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(false)
            }
            Err(error) => Err(failed("connect to it")(error)),
        }
    }

    pub(super) fn kill(&mut self) -> Result<(), Error> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.kill().and_then(|()| running.wait()).map_err(failed("kill it"))?;
        // Its id may be somebody else's from now on.
        self.tell_guard("\n")
    }

    fn tell_guard(&mut self, line: &str) -> Result<(), Error> {
        let told = self.guard.stdin.as_mut().map_or(Ok(()), |pipe| pipe.write_all(line.as_bytes()));
        told.map_err(failed("tell the shell that waits for our end"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let killed = self.kill();
        end(&mut self.guard);
        if killed.is_err() || self.folder.exists() {
            // A test has no other place to hear of it, and it is no reason to fail.
            eprintln!("db-testkit: {} stays for now: {killed:?}", self.folder.display());
        }
    }
}

/// With its input ends the guard, and removes the folder. Its own end only has to be taken note of.
fn end(guard: &mut Child) {
    guard.stdin = None;
    let _ = guard.wait();
}

/// Where the folder will be: where the account can work, and a socket has a short enough name.
fn place(account: Account) -> Result<PathBuf, Error> {
    let candidates = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")];
    let base = candidates
        .into_iter()
        .filter_map(|base| base.canonicalize().ok())
        .find(|base| base.as_os_str().len() + NAME_LENGTH <= PATH_LIMIT && account.can_work_in(base))
        .ok_or_else(|| failed("find a folder for temporary files")(ErrorKind::PermissionDenied.into()))?;
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
    Ok(base.join(format!("{PREFIX}{random}")))
}

fn start_guard(folder: &Path) -> io::Result<Child> {
    let mut guard = Account::OURS.command("/bin/sh");
    guard.args([OsStr::new("-c"), GUARD.as_ref(), folder.as_os_str()]);
    guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Writes what it needs, and gives it to the account: what is ours alone until then cannot be exchanged for a link.
fn furnish(account: Account, program: &Program, ini: &Ini, folder: &Path) -> Result<(PathBuf, File), Error> {
    let write = |path: &Path, content: &[u8], mode: u32| -> io::Result<File> {
        let mut file = OpenOptions::new().append(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        give(account, path)?;
        Ok(file)
    };
    for (path, content) in ini.files(folder) {
        write(&path, &content, 0o600).map_err(failed("write its configuration"))?;
    }
    let log = write(&folder.join("log"), b"", 0o600).map_err(failed("make its log"))?;
    let path = if program.is_out_of_reach {
        let copy = folder.join("pgbouncer");
        duplicate(&program.path, &copy).map_err(failed("copy the program"))?;
        give(account, &copy).map_err(failed("give the program away"))?;
        copy
    } else {
        program.path.clone()
    };
    give(account, folder).map_err(failed("give its folder away"))?;
    Ok((path, log))
}

/// Not by ourselves: what another thread begins just then would have the file open for writing for a moment, and a program that
/// somebody writes to cannot be run ("text file busy").
fn duplicate(program: &Path, copy: &Path) -> io::Result<()> {
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
