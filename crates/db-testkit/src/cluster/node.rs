//! A member as the cluster knows it: its process, and whom it follows.

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::home::Home;
use super::member::Member;
use super::programs::{failed, tail};
use crate::error::Error;
use crate::until::PAUSE;

/// What a member is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    /// Follows the primary, if it is joined.
    Standby {
        joined: bool,
    },
    /// Was the primary until another was promoted.
    Former,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Primary => "the primary",
            Role::Standby { joined: true } => "a standby",
            Role::Standby { joined: false } => "a standby that is cut off",
            Role::Former => "a former primary",
        }
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) member: Member,
    pub(super) role: Role,
    pub(super) process: Option<Child>,
    log: PathBuf,
}

impl Node {
    pub(super) fn new(member: Member, role: Role, home: &Home) -> Node {
        let log = home.log(member.number());
        Node { member, role, process: None, log }
    }

    /// Whether its process has not ended, by itself or by [`stopped`](Node::stopped).
    pub(super) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    pub(super) fn log(&self) -> Result<String, Error> {
        let bytes = fs::read(&self.log).map_err(failed("read a log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Signals the process, if it runs. It is a child of ours, so its id is no other's before we take note of its end.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let Some(pid) = self.process.as_ref().map(|process| process.id().cast_signed()) else {
            return Ok(());
        };
        if !self.is_running() {
            return Ok(());
        }
        kill(Pid::from_raw(pid), signal).map_err(|source| Error::Signal { pid, source: source.into() })
    }

    /// Waits until the process has ended. The caller has the deadline.
    pub(super) async fn stopped(&mut self) {
        while self.is_running() {
            tokio::time::sleep(PAUSE).await;
        }
        self.process = None;
    }

    /// Waits until it lets clients in; an error when it has ended. The caller has the deadline.
    pub(super) async fn up(&mut self) -> Result<(), Error> {
        loop {
            match self.member.asking().connect().await {
                Ok(connection) => {
                    close(connection).await;
                    return Ok(());
                }
                Err(_) if self.is_running() => tokio::time::sleep(PAUSE).await,
                Err(_) => {
                    let what = format!("member {} of the cluster has ended", self.member.number());
                    return Err(Error::ClusterProgram { what, log: self.log_tail() });
                }
            }
        }
    }
}

/// Its end is no news: the server may be gone.
pub(super) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection was lost before it was closed");
    }
}
