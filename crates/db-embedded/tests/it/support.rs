//! Queries, folders and processes for the tests.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Deadline of waits. Long, for a loaded machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the state is reached; on failure, `describe` says what was seen.
#[track_caller]
pub(crate) fn eventually(what: &str, mut reached: impl FnMut() -> bool, describe: impl Fn() -> String) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; seen: {}", describe());
        #[expect(clippy::disallowed_methods, reason = "between two checks, on a thread of the test's own")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// A folder that the server's account can reach.
pub(crate) fn reachable_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("db-embedded-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

/// A folder to use as `TMPDIR`.
pub(crate) fn temp_base() -> TempDir {
    let dir = reachable_dir();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
    dir
}

pub(crate) fn unique_name() -> String {
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    format!("test-{}", random.to_lowercase())
}

/// One open connection, closed on drop.
pub(crate) struct Session {
    runtime: Runtime,
    connection: PgConnection,
}

impl Session {
    pub(crate) fn open(url: &str) -> Result<Session, sqlx::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = PgConnectOptions::from_str(url)?;
        let connection = runtime.block_on(options.connect())?;
        Ok(Session { runtime, connection })
    }

    /// The first column of the first row, as text; empty without a row.
    pub(crate) fn ask(&mut self, sql: &'static str) -> Result<String, sqlx::Error> {
        let rows = self.runtime.block_on(sqlx::query(sql).fetch_all(&mut self.connection))?;
        rows.first().map_or(Ok(String::new()), |row| row.try_get(0))
    }

    pub(crate) fn close(self) {
        self.runtime.block_on(self.connection.close()).unwrap();
    }
}

pub(crate) fn ask(url: &str, sql: &'static str) -> Result<String, sqlx::Error> {
    let mut session = Session::open(url)?;
    let answer = session.ask(sql)?;
    session.close();
    Ok(answer)
}

/// A process that names the folder, works in it or has a file in it open: the supervisor, its `flock` and `sleep`, the server
/// and its backends.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) command: String,
}

impl Process {
    pub(crate) fn kill(&self) {
        signal(self.pid, Signal::SIGKILL);
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    // It may have ended by itself; the tests check what follows from its end.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// The processes that use the folder, without this one.
pub(crate) fn processes_of(folder: &Path) -> Vec<Process> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse() else { continue };
        if name == own {
            continue;
        }
        let proc = entry.path();
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let inside = |link: PathBuf| {
            fs::read_link(link)
                .is_ok_and(|target| target.as_os_str().to_string_lossy().contains(&*folder.to_string_lossy()))
        };
        let mut open = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        if command.contains(&*folder.to_string_lossy())
            || inside(proc.join("cwd"))
            || open.any(|fd| inside(fd.path()))
        {
            found.push(Process { pid, command });
        }
    }
    found
}

#[track_caller]
pub(crate) fn expect_no_processes_of(folder: &Path) {
    eventually(
        &format!("no process uses {}", folder.display()),
        || processes_of(folder).is_empty(),
        || format!("{:#?}", processes_of(folder)),
    );
}

#[track_caller]
pub(crate) fn expect_gone(folder: &Path) {
    eventually(
        &format!("{} is gone", folder.display()),
        || !folder.exists(),
        || format!("processes: {:#?}", processes_of(folder)),
    );
}

/// The supervisor of the folder's server.
#[track_caller]
pub(crate) fn supervisor_of(folder: &Path) -> Process {
    processes_of(folder)
        .into_iter()
        .find(|process| process.command.contains("/sh -s -- serve"))
        .unwrap_or_else(|| panic!("no supervisor among {:#?}", processes_of(folder)))
}

/// The supervisor's child that waits for the last lease to end; a new one each second.
pub(crate) fn waiter_of(folder: &Path) -> Option<Process> {
    processes_of(folder).into_iter().find(|process| process.command.starts_with("flock"))
}

/// The folder of a server, from its data folder.
pub(crate) fn folder_of(data: &Path) -> PathBuf {
    data.parent().unwrap().to_path_buf()
}
