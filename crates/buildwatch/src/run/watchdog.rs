//! Ending a command whose buildwatch was killed.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

/// Waits for a line or for the end of its input, which comes when this process is gone, however it went.
const SCRIPT: &str = r#"read -r dismissed || kill -s KILL -- "-$1""#;

/// A shell that kills a process group when this process is gone without having dismissed it.
pub(super) struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Without a shell there is none, and a command outlives a buildwatch that is killed.
    pub(super) fn start(group: Pid) -> Option<Self> {
        Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sh", &group.to_string()])
            // The command is the same user's, and could read it there.
            .env_clear()
            // What comes from the terminal is not for it.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .inspect_err(
                |error| tracing::warn!(%error, "the command will outlive a buildwatch that is killed"),
            )
            .ok()
            .map(|shell| Self { shell })
    }

    /// The group is no concern of its any more.
    pub(super) fn dismiss(mut self) {
        if let Some(mut line) = self.shell.stdin.take()
            && let Err(error) = line.write_all(b"dismissed\n")
        {
            tracing::debug!(%error, "the watchdog was gone already");
        }
        // It ends at once, and must not stay behind as a zombie.
        if let Err(error) = self.shell.wait() {
            tracing::debug!(%error, "the watchdog's end was not seen");
        }
    }
}
