//! The processes that listen, as whoever started them sees them.

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

/// How long a process may take to be there, or to say what it has heard.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Ears {
    myself: PathBuf,
    url: String,
    all: RefCell<Vec<Ear>>,
}

impl Ears {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self { myself: std::env::current_exe()?, url: url.to_owned(), all: RefCell::default() })
    }

    /// Starts and ends processes until there are so many, and waits until they listen.
    pub(super) fn become_as_many_as(&self, wanted: usize) -> anyhow::Result<()> {
        let mut all = self.all.borrow_mut();
        let before = all.len();
        all.truncate(wanted);
        while all.len() < wanted {
            all.push(Ear::start(&self.myself, &self.url)?);
        }
        for ear in all.iter().skip(before) {
            ensure!(ear.says()? == Said { heard: Vec::new(), last: READY.to_owned() }, "it is not ready");
        }
        Ok(())
    }

    /// What each has heard since it was last asked, once it has heard the end.
    pub(super) fn heard(&self) -> anyhow::Result<Vec<Vec<Heard>>> {
        self.all.borrow().iter().map(|ear| Ok(ear.says()?.heard)).collect()
    }
}

/// One of them.
struct Ear {
    child: Child,
    /// It ends when this is closed.
    stdin: Option<ChildStdin>,
    said: Receiver<anyhow::Result<Said>>,
}

/// Lines up to one that is no notification.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    heard: Vec<Heard>,
    last: String,
}

impl Ear {
    fn start(myself: &PathBuf, url: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(myself)
            .arg("listen")
            .env(ADDRESS, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let out = child.stdout.take().context("stdout is piped")?;
        let (sender, said) = sync_channel(1);
        // A thread can be waited for with a deadline, and a pipe cannot. It ends with the pipe.
        thread::spawn(move || follow(BufReader::new(out), &sender));
        Ok(Self { child, stdin, said })
    }

    fn says(&self) -> anyhow::Result<Said> {
        self.said.recv_timeout(PATIENCE).context("a process that listens does not say what it has heard")?
    }
}

/// Waits for its end.
impl Drop for Ear {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("bench: a process that listens: {error}");
        }
    }
}

fn follow(mut out: BufReader<ChildStdout>, sender: &SyncSender<anyhow::Result<Said>>) {
    loop {
        let said = read(&mut out);
        let is_over = said.is_err();
        // Nobody is there any more who wants to know.
        if sender.send(said).is_err() || is_over {
            return;
        }
    }
}

fn read(out: &mut impl BufRead) -> anyhow::Result<Said> {
    let mut heard = Vec::new();
    for line in out.lines() {
        let line = line?;
        match line.split_once(' ') {
            Some((topic, at)) => heard.push(Heard { topic: topic.parse()?, at: at.parse()? }),
            None => return Ok(Said { heard, last: line }),
        }
    }
    anyhow::bail!("a process that listens has ended before it heard `{END}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_says_ends_with_a_word() {
        let mut out = "ready\n7 1000\n8 1001\nend\n9 2000\n".as_bytes();

        let ready = read(&mut out).expect("ready");
        let end = read(&mut out).expect("end");

        assert_eq!(ready, Said { heard: Vec::new(), last: READY.to_owned() });
        assert_eq!(end.heard, [Heard { topic: 7, at: 1000 }, Heard { topic: 8, at: 1001 }]);
        assert_eq!(end.last, END);
        assert!(read(&mut out).is_err(), "it has ended in between");
    }
}
