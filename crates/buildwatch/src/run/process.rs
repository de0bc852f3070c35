//! The command as a process.

use std::ffi::OsString;
use std::future::pending;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use db_layer::NewEvent;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::output::End;
use crate::run::watchdog::Watchdog;
use crate::run::{environment, reader};

/// How long a command may take to end after the first signal.
const GRACE: Duration = Duration::from_secs(5);
/// How long processes that the command left behind may still write.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

/// A running command. It leads a process group, so that its children can be ended with it.
pub(super) struct Process {
    child: Child,
    group: Group,
}

impl Process {
    /// Starts a command; an error becomes the build's end.
    pub(super) fn spawn(command: &[OsString]) -> Result<Self, End> {
        let name = command[0].to_string_lossy().into_owned();
        let mut line = Command::new(&command[0]);
        for variable in environment::kept_back() {
            line.env_remove(variable);
        }
        let child = line
            .args(&command[1..])
            // A build reads no input.
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => End::failed(127, format!("command not found: {name}")),
                ErrorKind::PermissionDenied => End::failed(126, format!("not executable: {name}")),
                _ => End::failed(126, format!("cannot execute {name}: {error}")),
            })?;
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let watchdog = leader.and_then(Watchdog::start);
        Ok(Self { child, group: Group { leader, watchdog } })
    }

    /// Reads the command's output until it ends. Dropping the future kills the command and its children.
    pub(super) async fn run(
        mut self,
        chunks: Sender<Vec<NewEvent>>,
        cancel: CancellationToken,
        kill: CancellationToken,
    ) -> End {
        let stdout = self.child.stdout.take().expect("stdout is piped");
        let stderr = self.child.stderr.take().expect("stderr is piped");
        let stop = CancellationToken::new();
        let read = reader::read(stdout, stderr, chunks, stop.clone());
        tokio::pin!(read);

        let mut all_read = false;
        let mut aborted = false;
        let status = loop {
            tokio::select! {
                () = &mut read, if !all_read => all_read = true,
                status = self.child.wait() => break status,
                () = cancel.cancelled(), if !aborted => {
                    aborted = true;
                    self.group.signal(Signal::SIGINT);
                }
                () = overdue(&kill), if aborted => {
                    self.group.signal(Signal::SIGKILL);
                    break self.child.wait().await;
                }
            }
        };
        if !all_read {
            // A background child of the command may still hold the pipes. Storing what was read has no limit.
            let clear = async {
                sleep(LEFT_BEHIND).await;
                self.group.signal(Signal::SIGKILL);
                sleep(LEFT_BEHIND).await;
                stop.cancel();
                pending::<()>().await;
            };
            tokio::select! {
                () = &mut read => {}
                () = clear => {}
            }
        }
        self.group.release();
        if aborted {
            return End::aborted("aborted");
        }
        match status {
            Ok(status) => ended(status),
            Err(error) => End::failed(126, format!("cannot wait for the command: {error}")),
        }
    }
}

/// Waits until a command that was asked to end has used its time, or must be killed at once.
async fn overdue(kill: &CancellationToken) {
    timeout(GRACE, kill.cancelled()).await.ok();
}

fn ended(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::exited(code),
        (None, Some(signal)) => {
            let name =
                Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            End::failed(128 + signal, format!("ended by {name}"))
        }
        (None, None) => End::failed(126, "ended without an exit code or signal".to_owned()),
    }
}

/// A process group, killed when it is dropped, and by its watchdog if this process dies.
struct Group {
    leader: Option<Pid>,
    watchdog: Option<Watchdog>,
}

impl Group {
    /// The command has ended, and its children may live on: from here on, another group may get the number.
    fn release(&mut self) {
        self.leader = None;
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.leader {
            // ESRCH: the group is empty.
            killpg(group, signal).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
