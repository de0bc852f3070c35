//! Kills a command whose buildwatch was killed.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

/// Waits for a line, or for the end of its input, which means that this process has died.
const SCRIPT: &str = r#"read -r dismissed || kill -s KILL -- "-$1""#;

/// A shell that kills a process group if this process dies before it has dismissed the shell.
pub(super) struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Without a shell there is no watchdog, and the command outlives a killed buildwatch.
    pub(super) fn start(group: Pid) -> Option<Self> {
        Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sh", &group.to_string()])
            // The command runs as the same user, and could read the environment in /proc.
            .env_clear()
            // Signals from the terminal must not reach it.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .inspect_err(
                |error| tracing::warn!(%error, "cannot start the watchdog: if buildwatch is killed, the command goes on"),
            )
            .ok()
            .map(|shell| Self { shell })
    }

    /// Ends the watchdog without killing the group.
    pub(super) fn dismiss(mut self) {
        if let Some(mut line) = self.shell.stdin.take()
            && let Err(error) = line.write_all(b"dismissed\n")
        {
            tracing::debug!(%error, "the watchdog had ended already");
        }
        // It ends at once; waiting for it leaves no zombie.
        if let Err(error) = self.shell.wait() {
            tracing::debug!(%error, "cannot wait for the watchdog");
        }
    }
}
