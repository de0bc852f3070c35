//! Ends processes and removes their folder when the test process ends, also when it is killed.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// `$0` is the folder, `$1` the signal. Each line of its input is the list of the processes that run. It waits for 9 s
/// at most: a process whose parent takes no note of its end stays in the process table.
const SCRIPT: &str = r#"
while read -r line; do pids=$line; done
for pid in $pids; do kill -s "$1" "$pid"; done
tries=0
for pid in $pids; do
    while kill -0 "$pid" && [ "$tries" -lt 300 ]; do sleep 0.03; tries=$((tries + 1)); done
done
rm -rf "$0""#;

/// Becomes the program after a line of input. The guard must know the process before: the test process may be killed at any
/// time.
const GATE: &str = "read -r go && exec \"$0\" \"$@\" </dev/null";

/// A shell that waits for the end of a pipe that only this process holds open. Then it ends the processes that it was told
/// of, and removes the folder. It runs as the user of this process.
#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
    folder: PathBuf,
}

impl Guard {
    /// Makes the folder, which only this user can enter. Its processes are ended by this signal, such as `QUIT`.
    pub(crate) fn over(folder: PathBuf, signal: &str) -> io::Result<Guard> {
        let mut shell = Command::new("/bin/sh");
        shell.args([OsStr::new("-c"), SCRIPT.as_ref(), folder.as_os_str(), signal.as_ref()]);
        shell.current_dir("/").process_group(0);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if let Err(error) = DirBuilder::new().mode(0o700).create(&folder) {
            // Before its input ends: a folder that is there already belongs to another.
            shell.kill().and_then(|()| shell.wait())?;
            return Err(error);
        }
        Ok(Guard { shell, folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// These processes run now, and no others: the id of a process that ended may become that of another program.
    pub(crate) fn watch(&mut self, pids: impl IntoIterator<Item = u32>) -> io::Result<()> {
        let pids: Vec<String> = pids.into_iter().map(|pid| pid.to_string()).collect();
        let line = pids.join(" ") + "\n";
        self.shell.stdin.as_mut().map_or(Ok(()), |pipe| pipe.write_all(line.as_bytes()))
    }

    /// Kills the process if it runs, and watches none from then on: another process may get its id.
    pub(crate) fn kill(&mut self, running: &mut Option<Child>) -> io::Result<()> {
        let Some(mut running) = running.take() else { return Ok(()) };
        running.kill().and_then(|()| running.wait())?;
        self.watch([])
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shell.stdin = None;
        let ended = self.shell.wait();
        if self.folder.exists() {
            // A test has no other place to report this, and it is no reason to fail.
            eprintln!("db-testkit: {} stays for now: {ended:?}", self.folder.display());
        }
    }
}

/// Turns `shell`, a command that runs `/bin/sh`, into one that runs a program after [`open`].
pub(crate) fn gate(mut shell: Command, program: &Path, arguments: &[&OsStr]) -> Command {
    shell.args([OsStr::new("-c"), GATE.as_ref(), program.as_os_str()]).args(arguments).stdin(Stdio::piped());
    shell
}

/// Lets the program begin.
pub(crate) fn open(child: &mut Child) -> io::Result<()> {
    child.stdin.take().map_or(Ok(()), |mut gate| gate.write_all(b"\n"))
}
