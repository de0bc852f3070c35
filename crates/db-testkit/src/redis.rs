//! A Redis of a test's own.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::Deadline;
use crate::error::Error;
use crate::guard::{self, Guard};
use crate::until::PATIENCE;

/// The environment variable that names the program.
const VARIABLE: &str = "DB_TESTKIT_REDIS";

/// For the answer to a ping, while it starts.
const PING: Duration = Duration::from_secs(1);

/// How much of the end of the log goes into an error.
const TAIL_LINES: usize = 8;

/// A Redis of a test's own, which keeps nothing on the disk. It ends with this value or with the test process, however that ends, and its
/// folder is removed.
///
/// It listens only on a Unix socket, in a folder that only this account can enter, so that two never want the same port. The program is the one
/// in the environment variable `DB_TESTKIT_REDIS`, else `redis-server` on `PATH`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> { db_testkit::run(async |_| {
/// let redis = db_testkit::Redis::start().await?;
/// assert!(redis.url().starts_with("redis+unix:///"));
///
/// redis.restart().await?; // It is empty again.
/// # Ok(())
/// # }) }
/// ```
pub struct Redis {
    process: Mutex<Process>,
}

struct Process {
    guard: Guard,
    log: File,
    running: Option<Child>,
}

impl Redis {
    /// Starts one, and returns when it answers.
    ///
    /// # Errors
    ///
    /// [`Error::Redis`], [`Error::RedisFailed`], and [`Error::TimedOut`] after 20 seconds.
    pub async fn start() -> Result<Redis, Error> {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
        // The default folder's path may be longer than that of a socket can be.
        let folder = PathBuf::from(format!("/tmp/db-testkit-redis-{random}"));
        let guard = Guard::over(folder, "KILL").map_err(failed("make a folder and its guard"))?;
        let log = File::options().append(true).create_new(true).open(guard.folder().join("log"));
        let log = log.map_err(failed("make a log"))?;
        let redis = Redis { process: Mutex::new(Process { guard, log, running: None }) };
        redis.restart().await?;
        Ok(redis)
    }

    /// Its address: `redis+unix:///folder/socket`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// The path of its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.process().socket()
    }

    /// The id of its process; `None` once it was killed or has ended by itself.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().pid()
    }

    /// Kills it with `SIGKILL`, and returns when it is gone. Clients get an end of file, and new connections are refused until a
    /// [`restart`](Redis::restart).
    ///
    /// # Errors
    ///
    /// [`Error::Redis`] if the operating system refuses.
    pub fn kill(&self) -> Result<(), Error> {
        self.process().kill()
    }

    /// [Kills](Redis::kill) it if it runs, and starts it at the same address, with nothing in it.
    ///
    /// Not cancel safe: afterwards it may run, or not answer yet.
    ///
    /// # Errors
    ///
    /// As [`start`](Redis::start).
    pub async fn restart(&self) -> Result<(), Error> {
        self.process().start()?;
        let deadline = Deadline::after(PATIENCE);
        while !self.process().answers()? {
            deadline.pause("Redis to answer").await?;
        }
        Ok(())
    }

    /// Stops it with `SIGSTOP`: the system accepts connections for it, and nobody answers.
    ///
    /// # Errors
    ///
    /// [`Error::Redis`] if it does not run.
    pub fn freeze(&self) -> Result<(), Error> {
        self.process().signal(Signal::SIGSTOP)
    }

    /// Lets it go on after a [`freeze`](Redis::freeze).
    ///
    /// # Errors
    ///
    /// [`Error::Redis`] if it does not run.
    pub fn thaw(&self) -> Result<(), Error> {
        self.process().signal(Signal::SIGCONT)
    }

    /// A panic while the lock was held leaves a consistent state: each order is complete by itself.
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Process {
    fn socket(&self) -> PathBuf {
        self.guard.folder().join("socket")
    }

    fn pid(&mut self) -> Option<u32> {
        let running = self.running.as_mut()?;
        matches!(running.try_wait(), Ok(None)).then(|| running.id())
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(gone).map_err(failed("find the process"))?;
        kill(Pid::from_raw(pid), signal).map_err(|error| failed("send a signal")(error.into()))
    }

    fn start(&mut self) -> Result<(), Error> {
        self.kill()?;
        let log = || self.log.try_clone().map_err(failed("open the log again"));
        let program = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        let program = program.unwrap_or_else(|| "redis-server".into());
        let socket = self.socket();
        let arguments =
            ["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket"];
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).chain([socket.as_os_str()]).collect();
        let mut shell = Command::new("/bin/sh");
        shell.current_dir(self.guard.folder()).process_group(0).env_clear();
        shell.envs(
            ["PATH", "LD_LIBRARY_PATH"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        let mut command = guard::gate(shell, Path::new(&program), &arguments);
        command.stdout(log()?).stderr(log()?).stdin(Stdio::piped());
        let child = command.spawn().map_err(failed("start the process"))?;
        let pid = child.id();
        // Dropping this value kills it from now on.
        let running = self.running.insert(child);
        self.guard.watch([pid]).map_err(failed("write to the guard shell"))?;
        guard::open(running).map_err(failed("release the process"))
    }

    /// Whether it answers; an error if it has ended.
    fn answers(&mut self) -> Result<bool, Error> {
        if self.pid().is_none() {
            let log = fs::read_to_string(self.guard.folder().join("log")).map_err(failed("read the log"))?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            return Err(Error::RedisFailed { log: tail });
        }
        // There is no socket yet, or it is that of the killed predecessor.
        let Ok(mut socket) = UnixStream::connect(self.socket()) else { return Ok(false) };
        let mut answer = [0; 7];
        let asked = socket
            .set_read_timeout(Some(PING))
            .and_then(|()| socket.write_all(b"PING\r\n"))
            .and_then(|()| socket.read_exact(&mut answer));
        Ok(asked.is_ok() && answer == *b"+PONG\r\n")
    }

    fn kill(&mut self) -> Result<(), Error> {
        self.guard.kill(&mut self.running).map_err(failed("kill the process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "the guard has to kill Redis");
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Redis { action, source }
}
