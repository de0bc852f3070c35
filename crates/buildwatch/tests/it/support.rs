//! Runs buildwatch as a program.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use db_testkit::TestDb;
use serde_json::Value;
use tempfile::TempDir;

/// Limit for every wait in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A data folder, and the address of its database.
pub(crate) struct Home {
    folder: TempDir,
    url: Option<String>,
    /// Whether it opens a database that has values under other keys.
    may_miss_keys: bool,
}

impl Home {
    /// A data folder with an embedded server.
    pub(crate) fn embedded() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // When the test runs as root, the server runs as another user, who must be able to enter the folder.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("permissions");
        Self { folder, url: None, may_miss_keys: false }
    }

    /// A data folder with a test's database.
    pub(crate) fn on(db: &TestDb) -> Self {
        Self { url: Some(db.url()), ..Self::embedded() }
    }

    /// The same, and it may lack keys of the database.
    pub(crate) fn without_keys_of(db: &TestDb) -> Self {
        Self { may_miss_keys: true, ..Self::on(db) }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The path of a file for the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `buildwatch ARGS`, not started yet.
    pub(crate) fn buildwatch<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_buildwatch"));
        command.arg("--data").arg(self.data()).args(args).stdin(Stdio::null());
        for (setting, ..) in db_layer::Settings::default().effective() {
            command.env_remove(setting.variable());
        }
        match &self.url {
            Some(url) => command.env("DATABASE_URL", url),
            None => command.env_remove("DATABASE_URL"),
        };
        if self.may_miss_keys {
            command.env("ENCRYPTION_KEYS_MISSING", "ignore");
        }
        command
    }

    /// Runs `buildwatch ARGS` to its end.
    pub(crate) fn output<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.buildwatch(args).output().expect("buildwatch runs")
    }

    /// Runs a shell command as a build, to its end.
    pub(crate) fn run(&self, script: &str) -> Output {
        self.output(["run", "--", "sh", "-c", script])
    }

    /// Starts `buildwatch ARGS`, and reads its output line by line.
    pub(crate) fn start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Live {
        Live::new(self.buildwatch(args))
    }

    /// Runs `buildwatch ARGS`, and parses the JSON objects that it prints.
    pub(crate) fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Vec<Value> {
        let output = self.output(args);
        assert!(output.status.success(), "{}", err(&output));
        json_lines(&out(&output))
    }

    /// The events of a build, once it has ended.
    pub(crate) fn events(&self, id: i64) -> Vec<Value> {
        self.json(["watch", &id.to_string(), "--json"])
    }

    /// Makes a named pipe at which a command can wait once. For a second wait use another pipe: the first writer may not have
    /// closed it yet, so the command would read its end instead of waiting.
    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        path
    }
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running program. Killed when the test ends, if it still runs.
pub(crate) struct Live {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Live {
    pub(crate) fn new(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let out = read_lines(child.stdout.take().expect("stdout is piped"));
        let err = read_lines(child.stderr.take().expect("stderr is piped"));
        Self { child, out, err }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of stdout, without its end.
    pub(crate) fn line(&self) -> String {
        self.out
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("no line: {error}; {:?}", self.errors()))
    }

    /// The next line of stdout, if one comes within `time`.
    pub(crate) fn line_within(&self, time: Duration) -> Option<String> {
        match self.out.recv_timeout(time) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("ended: {:?}", self.errors()),
        }
    }

    /// The next line of stderr that contains a text.
    pub(crate) fn error_with(&self, text: &str) -> String {
        loop {
            let line = self.err.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("no `{text}`: {error}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The build's number, which `run` prints on stderr.
    pub(crate) fn build(&self) -> i64 {
        let line = self.error_with("build ");
        line.rsplit(' ').next().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    /// All remaining lines of stdout.
    pub(crate) fn rest(&self) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.out.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("stdout stays open after {rest:?}"),
            }
        }
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.err.try_iter().collect()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, &[self.pid()]);
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("its end");
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the program has ended", || {
            status = self.child.try_wait().expect("a status");
            status.is_some()
        });
        status.expect("the condition above")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // The program has mostly ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Lines with their numbers.
pub(crate) fn lines(count: u32, before: &str) -> String {
    let mut text = String::new();
    for n in 1..=count {
        writeln!(text, "{before}{n}").expect("writing to a string");
    }
    text
}

fn read_lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

pub(crate) fn signal(name: &str, pids: &[u32]) {
    let pids = pids.iter().map(ToString::to_string);
    let status = Command::new("kill").args(["-s", name]).args(pids).stderr(Stdio::null()).status();
    assert!(status.expect("kill runs").success(), "{name}");
}

/// Waits until the condition holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        #[expect(clippy::disallowed_methods, reason = "between two checks, on a thread of the test's own")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes whose command line or working folder mentions a folder.
pub(crate) fn processes(folder: &Path) -> Vec<u32> {
    let folder = folder.to_str().expect("UTF-8");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let work = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(folder) || work.starts_with(folder) {
            found.push(pid);
        }
    }
    found
}

/// The postmaster of a data folder's server, and all of its processes.
pub(crate) fn server_processes(home: &Home) -> Vec<u32> {
    let pidfile = home.data().join("postgres/data/postmaster.pid");
    let text = fs::read_to_string(&pidfile).unwrap_or_else(|error| panic!("{}: {error}", pidfile.display()));
    let postmaster: u32 = text.lines().next().and_then(|line| line.parse().ok()).expect("a process id");
    let children =
        Command::new("ps").args(["-o", "pid=", "--ppid", &postmaster.to_string()]).output().expect("ps runs");
    let mut all = vec![postmaster];
    all.extend(
        String::from_utf8_lossy(&children.stdout)
            .split_whitespace()
            .filter_map(|pid| pid.parse::<u32>().ok()),
    );
    all
}

/// Stops all processes of a server until it is dropped.
pub(crate) struct Frozen {
    postmaster: u32,
    children: Vec<u32>,
}

impl Frozen {
    pub(crate) fn new(home: &Home) -> Self {
        let postmaster = server_processes(home)[0];
        signal("STOP", &[postmaster]);
        until("the postmaster has stopped", || {
            let stat = fs::read_to_string(format!("/proc/{postmaster}/stat")).expect("its state");
            stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        });
        // From now on no child is started, and one that ends keeps its number, since nobody has waited for it.
        let children = server_processes(home).split_off(1);
        signal("STOP", &children);
        Self { postmaster, children }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal("CONT", &self.children);
        signal("CONT", &[self.postmaster]);
    }
}
