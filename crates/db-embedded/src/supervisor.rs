//! Starts the shell script that keeps the server running, and watches for its end.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::account::Account;
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind};

const SHELL: &str = "/bin/sh";
const SCRIPT: &str = include_str!("supervisor.sh");

/// The program with which the script takes locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockTool {
    Flock,
    Perl,
}

impl LockTool {
    /// Finds one that can wait with a timeout, which the `flock` of busybox cannot.
    pub(crate) fn find(account: &Account) -> Result<LockTool, Error> {
        let works = |program: &str, arguments: &[&str]| {
            account
                .command(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        if works("flock", &["--version"]) {
            Ok(LockTool::Flock)
        } else if works("perl", &["-MFcntl", "-e", "1"]) {
            Ok(LockTool::Perl)
        } else {
            Err(Error::NoLockTool)
        }
    }
}

/// One run of the script; the head of `supervisor.sh` explains the arguments.
pub(crate) struct Script<'a> {
    pub(crate) verb: &'static str,
    pub(crate) folder: &'a Folder,
    /// A socket folder that is not inside `folder`.
    pub(crate) sockets: Option<&'a Path>,
    pub(crate) tool: LockTool,
    pub(crate) orphan: Option<u32>,
}

impl Script<'_> {
    /// Starts the script, which then runs `program`, a path with its arguments.
    pub(crate) fn spawn(&self, program: Vec<OsString>, log: File) -> Result<Child, Error> {
        let kind = match self.folder.kind {
            Kind::Kept => "kept",
            Kind::Throwaway => "throwaway",
        };
        let tool = match self.tool {
            LockTool::Flock => "flock",
            LockTool::Perl => "perl",
        };
        // The script's messages belong between the server's lines.
        let errors = log.try_clone().doing("open once more", self.folder.log())?;
        let mut command = self.folder.account.command(SHELL);
        command
            .args(["-s", "--", self.verb, kind])
            .arg(&self.folder.path)
            .arg(self.sockets.unwrap_or(Path::new("")))
            .arg(tool)
            .arg(self.orphan.map(|pid| pid.to_string()).unwrap_or_default())
            .args(program)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors);
        let mut child = command.spawn().doing("run as the server's account", SHELL)?;
        // The script is smaller than a pipe's buffer, so this does not block. Without its last line the script does nothing.
        let sent = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(SCRIPT.as_bytes()));
        if let Err(error) = sent {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error).doing("send the supervisor to", SHELL);
        }
        Ok(child)
    }
}

/// The exit status of a supervisor that this process started. The supervisor may outlive us, so nobody waits for it, but while
/// we live its end must be collected, or it would stay in the process table.
#[derive(Clone, Debug)]
pub(crate) struct Watch(Arc<OnceLock<ExitStatus>>);

impl Watch {
    /// Starts a thread that ends with the child.
    pub(crate) fn begin(mut child: Child) -> Result<Watch, Error> {
        let ended = Arc::new(OnceLock::new());
        let cell = Arc::clone(&ended);
        thread::Builder::new()
            .name("db-embedded-watch".into())
            .stack_size(64 * 1024)
            .spawn(move || match child.wait() {
                Ok(status) => {
                    if !status.success() {
                        tracing::warn!(%status, "the supervisor of a PostgreSQL server ended abnormally");
                    }
                    let _ = cell.set(status);
                }
                Err(error) => tracing::warn!(%error, "cannot wait for the supervisor of a PostgreSQL server"),
            })
            .doing("start a thread that waits for", SHELL)?;
        Ok(Watch(ended))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.get().is_some()
    }
}
