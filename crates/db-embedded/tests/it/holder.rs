//! A child process that holds a lease: this test program again, with orders in its environment.
//!
//! It is not an example or a program of its own, since only the running test program is sure to exist, under `cargo test --test
//! it` as under nextest.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use db_embedded::{Builder, Server};
use nix::sys::signal::Signal;

use crate::support::signal;

const ORDER: &str = "DB_EMBEDDED_TEST_HOLD";

fn builder(order: &str) -> Builder {
    match order.split_once(' ') {
        Some(("shared", name)) => Server::shared(name),
        Some(("kept", dir)) => Server::kept(dir),
        _ => Server::throwaway(),
    }
}

/// In a child: starts, reports in one line, and holds the lease until its input ends. In a normal run: nothing.
#[test]
fn holds_a_lease_when_told_to() {
    let Ok(order) = env::var(ORDER) else { return };
    let mut stdout = std::io::stdout().lock();
    match builder(&order).start() {
        Ok(server) => {
            let pid = server.postmaster_pid().unwrap();
            writeln!(stdout, "\nHOLDS\t{}\t{pid}\t{}", server.url("postgres"), server.data_dir().display())
                .unwrap();
            stdout.flush().unwrap();
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
            writeln!(stdout, "\nRELEASED\t{:?}", server.release().unwrap()).unwrap();
        }
        Err(error) => {
            writeln!(stdout, "\nFAILED\t{error:?}\t{}", error.to_string().replace('\n', " ")).unwrap();
        }
    }
    stdout.flush().unwrap();
}

/// The child before its report.
pub(crate) struct Starting {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// The child with its lease.
pub(crate) struct Holder {
    starting: Starting,
    pub(crate) url: String,
    pub(crate) postmaster: i32,
    pub(crate) folder: PathBuf,
}

/// How the child's start failed: the error's `Debug` and `Display` forms.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) debug: String,
    pub(crate) display: String,
}

impl Starting {
    pub(crate) fn new(order: &str) -> Starting {
        Starting::with(order, |_| {})
    }

    pub(crate) fn with(order: &str, change: impl FnOnce(&mut Command)) -> Starting {
        Starting::of(env::current_exe().unwrap(), order, change)
    }

    /// Runs `program`, which is this one or begins by running it.
    pub(crate) fn of(program: impl AsRef<OsStr>, order: &str, change: impl FnOnce(&mut Command)) -> Starting {
        let mut command = Command::new(program.as_ref());
        change(&mut command);
        command
            .args(["holder::holds_a_lease_when_told_to", "--exact", "--nocapture"])
            .env(ORDER, order)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Starting { child, stdin, stdout }
    }

    fn line(&mut self, words: &[&str]) -> Vec<String> {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let length = self.stdout.read_line(&mut line).unwrap();
            all.push_str(&line);
            assert!(length > 0, "the child said nothing of {words:?}, but: {all}");
            if words.iter().any(|word| line.starts_with(word)) {
                return line.trim_end().split('\t').map(str::to_owned).collect();
            }
        }
    }

    /// Blocks until the child has its lease, or failed to get one.
    pub(crate) fn outcome(mut self) -> Result<Holder, Failed> {
        let said = self.line(&["HOLDS", "FAILED"]);
        if said[0] == "FAILED" {
            self.child.wait().unwrap();
            return Err(Failed { debug: said[1].clone(), display: said[2].clone() });
        }
        let folder = Path::new(&said[3]).parent().unwrap().to_path_buf();
        Ok(Holder { url: said[1].clone(), postmaster: said[2].parse().unwrap(), folder, starting: self })
    }

    pub(crate) fn hold(self) -> Holder {
        self.outcome().unwrap_or_else(|failed| panic!("the child could not start its server: {failed:?}"))
    }

    /// Kills the child by `SIGKILL`, whatever it is doing.
    pub(crate) fn kill(mut self) {
        signal(i32::try_from(self.child.id()).unwrap(), Signal::SIGKILL);
        self.child.wait().unwrap();
    }
}

impl Holder {
    /// Kills the child by `SIGKILL`.
    pub(crate) fn kill(self) {
        self.starting.kill();
    }

    /// Kills the child and its process group, which it must lead, by `SIGKILL`.
    pub(crate) fn kill_group(mut self) {
        let leader = i32::try_from(self.starting.child.id()).unwrap();
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(leader), Signal::SIGKILL).unwrap();
        self.starting.child.wait().unwrap();
    }

    /// Makes the child release its lease, and waits for its end and until every process has closed its output.
    pub(crate) fn release_and_read_to_the_end(mut self) {
        self.starting.stdin = None;
        assert!(self.starting.child.wait().unwrap().success());
        self.starting.stdout.read_to_end(&mut Vec::new()).unwrap();
    }

    /// Makes the child release its lease, and returns its report.
    pub(crate) fn release(mut self) -> String {
        self.starting.stdin = None;
        let said = self.starting.line(&["RELEASED"]);
        assert!(self.starting.child.wait().unwrap().success());
        said[1].clone()
    }
}
