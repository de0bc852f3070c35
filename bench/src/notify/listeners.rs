//! The listening processes, seen from the process that starts them.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::END;
use super::committed::Heard;
use super::listen::{ADDRESS, READY};

/// How long a process may take to start, or to report its notifications.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Listeners {
    myself: PathBuf,
    url: String,
    all: RefCell<Vec<Listener>>,
}

impl Listeners {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self { myself: std::env::current_exe()?, url: url.to_owned(), all: RefCell::default() })
    }

    /// Starts and ends processes until their number is `wanted`, and waits until they listen.
    pub(super) fn resize(&self, wanted: usize) -> anyhow::Result<()> {
        let mut all = self.all.borrow_mut();
        let before = all.len();
        all.truncate(wanted);
        while all.len() < wanted {
            all.push(Listener::start(&self.myself, &self.url)?);
        }
        for listener in all.iter().skip(before) {
            ensure!(
                listener.output()? == Output { heard: Vec::new(), last: READY.to_owned() },
                "the process is not ready"
            );
        }
        Ok(())
    }

    /// The notifications that each process has received since the last call, up to the end marker.
    pub(super) fn heard(&self) -> anyhow::Result<Vec<Vec<Heard>>> {
        self.all.borrow().iter().map(|listener| Ok(listener.output()?.heard)).collect()
    }
}

/// One listening process.
struct Listener {
    child: Child,
    /// The process ends when this is closed.
    stdin: Option<ChildStdin>,
    output: Receiver<anyhow::Result<Output>>,
}

/// The lines up to one that is not a notification.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    heard: Vec<Heard>,
    last: String,
}

impl Listener {
    fn start(myself: &PathBuf, url: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(myself)
            .arg("listen")
            .env(ADDRESS, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let out = child.stdout.take().context("piped stdout")?;
        let (sender, output) = sync_channel(1);
        // A channel has a receive with a deadline, and a pipe has none. The thread ends with the pipe.
        thread::spawn(move || follow(BufReader::new(out), &sender));
        Ok(Self { child, stdin, output })
    }

    fn output(&self) -> anyhow::Result<Output> {
        self.output.recv_timeout(PATIENCE).context("a listening process does not report its notifications")?
    }
}

/// Waits for the end of the process.
impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("bench: a listening process: {error}");
        }
    }
}

fn follow(mut out: BufReader<ChildStdout>, sender: &SyncSender<anyhow::Result<Output>>) {
    loop {
        let output = read(&mut out);
        let is_over = output.is_err();
        // The receiver is gone.
        if sender.send(output).is_err() || is_over {
            return;
        }
    }
}

fn read(out: &mut impl BufRead) -> anyhow::Result<Output> {
    let mut heard = Vec::new();
    for line in out.lines() {
        let line = line?;
        match line.split_once(' ') {
            Some((topic, at)) => heard.push(Heard { topic: topic.parse()?, at: at.parse()? }),
            None => return Ok(Output { heard, last: line }),
        }
    }
    anyhow::bail!("a listening process has ended before it received `{END}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_process_ends_with_a_word() {
        let mut out = "ready\n7 1000\n8 1001\nend\n9 2000\n".as_bytes();

        let ready = read(&mut out).expect("ready");
        let end = read(&mut out).expect("end");

        assert_eq!(ready, Output { heard: Vec::new(), last: READY.to_owned() });
        assert_eq!(end.heard, [Heard { topic: 7, at: 1000 }, Heard { topic: 8, at: 1001 }]);
        assert_eq!(end.last, END);
        assert!(read(&mut out).is_err(), "the output has ended early");
    }
}
