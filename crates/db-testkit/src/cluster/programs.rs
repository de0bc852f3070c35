//! Processes of a cluster, and how they end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::error::Error;
use crate::until::PAUSE;

/// How much of the end of a log goes into an error.
const TAIL_LINES: usize = 8;

/// A program that is killed when this is dropped before it ended.
#[derive(Debug)]
pub(super) struct Job {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Job {
    /// Starts it. Its errors go to `log`, and from there into ours.
    pub(super) fn begin(mut command: Command, what: &'static str, log: PathBuf) -> Result<Job, Error> {
        command.stderr(File::create(&log).map_err(failed("make a log"))?);
        let child = command.spawn().map_err(failed(what))?;
        Ok(Job { what, child, log })
    }

    /// Waits for its end. The caller has the deadline.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        loop {
            match self.child.try_wait().map_err(failed(self.what))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let what = format!("cannot {}: the program ended with {status}", self.what);
                    return Err(Error::ClusterProgram { what, log: tail(&self.log) });
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end at this moment.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let bytes = match fs::read(log) {
        Ok(bytes) => bytes,
        Err(error) => return format!("(its log {} cannot be read: {error})", log.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

pub(super) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Cluster { action, source }
}
