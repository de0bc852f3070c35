//! Stopping and killing servers.

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
    /// Like `pg_ctl stop -m fast`: transactions are rolled back, clients get `57P01`, and no recovery is needed.
    Fast,
    /// Like `pg_ctl stop -m immediate`: sessions end where they are (`57P02`, or an end of file), and the next start recovers
    /// what was committed.
    Immediate,
    /// `SIGKILL` to the postmaster. Sessions end with an end of file once they notice it, which may take a while during a
    /// statement.
    Kill,
}

impl Stop {
    pub(crate) fn signal(self) -> Signal {
        match self {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
            Stop::Kill => Signal::SIGKILL,
        }
    }
}

/// Stopping a server of the test's own.
///
/// The server is restarted within a second or two, at the same address and with its data. After two deaths within ten seconds
/// of a start each restart takes some seconds longer, and after five there is no restart. A test that needs the server away for
/// longer puts a [`Proxy`](crate::Proxy) in front of it, and calls [`refuse`](crate::Proxy::refuse).
impl TestServer {
    /// Stops the server, and waits until its postmaster is gone. The restart may have happened by then.
    ///
    /// Not cancel safe: the server may or may not have been told to stop.
    ///
    /// # Errors
    ///
    /// [`Error::NotPrivate`] unless it comes from [`throwaway`](TestServer::throwaway) or [`start`](TestServer::start);
    /// [`Error::Server`] if it does not run; [`Error::Signal`]; [`Error::TimedOut`] after 20 s.
    pub async fn stop(&self, how: Stop) -> Result<(), Error> {
        let server = self.private("stopped")?;
        let deadline = Deadline::after(PATIENCE);
        let running = server.postmaster_pid().map_err(Error::Server)?;
        let stopped = running.cast_signed();
        // Only while the same postmaster runs: later another process may have its id.
        while server.postmaster_pid().is_ok_and(|pid| pid == running) {
            // Repeated, since the postmaster ignores signals while it starts.
            match kill(Pid::from_raw(stopped), how.signal()) {
                // It has just ended.
                Err(Errno::ESRCH) => {}
                sent => sent.map_err(|source| Error::Signal { pid: stopped, source: source.into() })?,
            }
            deadline.pause("the server to stop").await?;
        }
        Ok(())
    }

    /// Waits until the server accepts connections.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] with the last refusal, after 20 s.
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
    /// Not cancel safe: the server may or may not have been told to stop.
    ///
    /// # Errors
    ///
    /// As both of them.
    pub async fn restart(&self, how: Stop) -> Result<(), Error> {
        self.stop(how).await?;
        self.until_up().await
    }

    /// Kills one session's backend with `SIGKILL`, as the kernel does when memory runs out, and waits until the server has
    /// noticed.
    ///
    /// The backend's client gets an end of file. The server then ends **all** sessions of all databases, recovers, and accepts
    /// connections again: [`until_up`](TestServer::until_up) waits for that. The postmaster stays. To end a single session on
    /// any server, use `select pg_terminate_backend(pid)`.
    ///
    /// Not cancel safe: the backend may or may not have been killed.
    ///
    /// # Errors
    ///
    /// [`Error::NotPrivate`] as in [`stop`](TestServer::stop); [`Error::Signal`] with `ESRCH` if the process is not a session
    /// of this server; [`Error::Connect`] and [`Error::Statement`] if the server does not answer; [`Error::TimedOut`] after 20
    /// s.
    pub async fn kill_backend(&self, pid: i32) -> Result<(), Error> {
        self.private("robbed of a backend")?;
        let deadline = Deadline::after(PATIENCE);
        // This session also shows when the server has noticed: it is lost then.
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
