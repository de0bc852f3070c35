//! Servers that are killed.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{ConnectOptions, Connection};

use crate::admin::Admin;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::server::TestServer;
use crate::until::PATIENCE;

/// How a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// As `pg_ctl stop -m fast` does: transactions are rolled back, clients are told (`57P01`), and nothing has to be recovered.
    Fast,
    /// As `pg_ctl stop -m immediate` does: sessions end where they are (`57P02`, or an end of file), and what was committed
    /// is recovered at the next start.
    Immediate,
    /// `SIGKILL` to the server's first process. Its sessions end when they notice, each with an end of file; one that runs a
    /// statement may do so for a while.
    Kill,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
            Stop::Kill => Signal::SIGKILL,
        }
    }
}

/// What one does to a server of one's own.
///
/// Such a server comes back by itself: it is started again within a second or two, at the same address and with its data.
/// After two deaths within ten seconds of a start it takes some seconds longer each time, and after five it does not come
/// back. A test that needs it away for longer puts a [`Proxy`](crate::Proxy) before it, and tells that one to
/// [`refuse`](crate::Proxy::refuse).
impl TestServer {
    /// Stops the server, and waits until its first process is gone. It may be back by then.
    ///
    /// Not cancel-safe: the server may be told to stop, or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotPrivate`] unless it is from [`throwaway`](TestServer::throwaway) or [`start`](TestServer::start);
    /// [`Error::Server`] when it does not run; [`Error::Signal`]; [`Error::TimedOut`] after 20 seconds.
    pub async fn stop(&self, how: Stop) -> Result<(), Error> {
        let server = self.private("stopped")?;
        let deadline = Deadline::after(PATIENCE);
        let running = server.postmaster_pid().map_err(Error::Server)?;
        let stopped = running.cast_signed();
        // As long as that one is there: its process id may be somebody else's a moment later.
        while server.postmaster_pid().is_ok_and(|pid| pid == running) {
            // Each time again, for it ignores them while it starts.
            match kill(Pid::from_raw(stopped), how.signal()) {
                // It has just ended.
                Err(Errno::ESRCH) => {}
                sent => sent.map_err(|source| Error::Signal { pid: stopped, source: source.into() })?,
            }
            deadline.pause("the server to stop").await?;
        }
        Ok(())
    }

    /// Waits until the server lets clients in.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] with the last refusal, when it does not within 20 seconds.
    pub async fn until_up(&self) -> Result<(), Error> {
        let deadline = Deadline::after(PATIENCE);
        let options = self.maintenance()?;
        loop {
            match options.connect().await {
                Ok(connection) => {
                    if let Err(error) = connection.close().await {
                        tracing::debug!(%error, "a connection was lost before it was closed");
                    }
                    return Ok(());
                }
                Err(source) => {
                    if deadline.pause("the server to be up").await.is_err() {
                        let database = options.get_database().unwrap_or("(its default)").to_owned();
                        return Err(Error::Connect { database, server: self.name(), source });
                    }
                }
            }
        }
    }

    /// [Stops](TestServer::stop) the server, and waits until it is [up](TestServer::until_up) again.
    ///
    /// Not cancel-safe: the server may be told to stop, or not.
    ///
    /// # Errors
    ///
    /// As those two have them.
    pub async fn restart(&self, how: Stop) -> Result<(), Error> {
        self.stop(how).await?;
        self.until_up().await
    }

    /// Kills one session's backend with `SIGKILL`, as the kernel does when memory is short, and waits until the server has
    /// noticed.
    ///
    /// Its client gets an end of file. The server then ends **all** sessions of all databases, recovers, and lets clients in
    /// again: [`until_up`](TestServer::until_up) waits for that. Its first process stays the same. To end one session alone,
    /// `select pg_terminate_backend(pid)` is the way, on any server.
    ///
    /// Not cancel-safe: the backend may be killed, or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotPrivate`] as in [`stop`](TestServer::stop); [`Error::Signal`] with `ESRCH` when the process is no session
    /// of this server; [`Error::Connect`] and [`Error::Statement`] when the server cannot be asked; [`Error::TimedOut`]
    /// after 20 seconds.
    pub async fn kill_backend(&self, pid: i32) -> Result<(), Error> {
        self.private("robbed of a backend")?;
        let deadline = Deadline::after(PATIENCE);
        // Also a witness: it is lost when the server has noticed.
        let mut witness = Admin::connect(self, deadline).await?;
        let sql = "select from pg_stat_activity where pid::text = $1 and backend_type = 'client backend'";
        let asked = pid.to_string();
        if witness.rows(sql, &asked).await?.is_empty() {
            witness.close().await;
            return Err(Error::Signal { pid, source: Errno::ESRCH.into() });
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .map_err(|source| Error::Signal { pid, source: source.into() })?;
        while witness.rows(sql, &asked).await.is_ok() {
            deadline.pause("the server to notice that a backend was killed").await?;
        }
        Ok(())
    }
}
