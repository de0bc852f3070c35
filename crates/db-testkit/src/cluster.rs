//! A primary and its standbys.

mod archive;
mod builder;
mod home;
mod lag;
mod member;
mod node;
mod programs;
mod roles;
mod settings;

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use db_embedded::Programs;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::error::Error;
use crate::until::{PATIENCE, PAUSE};
pub use builder::ClusterBuilder;
use home::Home;
pub use lag::Lag;
pub use member::Member;
use node::{Node, Role, close};
use programs::failed;

/// How a server says that processes of its killed predecessor still use the data.
const STILL_ATTACHED: &str = "pre-existing shared memory block";

/// A primary and the standbys that follow it, on Unix sockets in a private folder. They end with this value, and with the
/// test process, however that ends; the folder goes, too. Dropping it blocks for some 80 ms.
///
/// Each server is a [`Member`] with an address that stays. What changes is the role: [`promote`](Cluster::promote) makes a
/// standby the primary, and leaves the former primary as it is; [`demote`](Cluster::demote) makes that one a standby. A
/// test that needs one address in front of them puts a [`Proxy`](crate::Proxy) there, and lets it
/// [lead](crate::Proxy::lead_to) to another member.
///
/// ```
/// use db_testkit::{Cluster, Stop};
/// use sqlx::{Connection, Executor, PgConnection};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut cluster = Cluster::builder().standbys(2).start().await?;
/// let (old, new) = (cluster.primary(), cluster.standby(0));
/// PgConnection::connect(&old.url()).await?.execute("create table word (t text)").await?;
/// cluster.until_caught_up(&new).await?;
///
/// // The primary is lost, and the first standby takes its place.
/// cluster.stop(&old, Stop::Immediate).await?;
/// cluster.promote(&new).await?;
///
/// PgConnection::connect(&new.url()).await?.execute("insert into word values ('hello')").await?;
/// assert_eq!(cluster.primary(), new);
/// # Ok(()) }
/// ```
///
/// # What is needed
///
/// PostgreSQL 14 or later, found as [`db_embedded`] finds it; `tar`; for [`demote`](Cluster::demote) also `pg_rewind`, which
/// not every package has. For root, the servers run as the account that [`db_embedded`] chooses. Only the user of this
/// process, that account and root reach the sockets, and all roles are let in without a password.
///
/// # What is left behind
///
/// One file for each version of PostgreSQL, in the folder for temporary files: what `initdb` made, since each cluster begins
/// with a copy of it. It is removed when no cluster used it for a day. All clusters of one version therefore
/// have the same system identifier; a [`TestServer::throwaway`](crate::TestServer::throwaway) has another.
///
/// # Deadlines and cancellation
///
/// Each method ends within 20 seconds, [`ClusterBuilder::start`] within 60. Unless a method says so, it is not cancel-safe: the
/// servers may have done what they were told, or not. No process is left in any case.
pub struct Cluster {
    /// In the order of their numbers.
    nodes: Vec<Node>,
    primary: usize,
    own: Vec<(String, String)>,
    programs: Programs,
    /// Last: its guard removes the folder when the servers have ended.
    home: Home,
}

impl Cluster {
    /// A primary and one standby.
    ///
    /// # Errors
    ///
    /// As [`ClusterBuilder::start`] has them.
    pub async fn start() -> Result<Cluster, Error> {
        Cluster::builder().start().await
    }

    /// To set something first.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// The member that was promoted last; at first, member 0. It may be stopped.
    #[must_use]
    pub fn primary(&self) -> Member {
        self.nodes[self.primary].member.clone()
    }

    /// The member that is the standby number `n` now, counted from 0 in the order of the members' numbers. A standby that is
    /// cut off or stopped counts, too.
    ///
    /// # Panics
    ///
    /// When there are fewer standbys.
    #[must_use]
    pub fn standby(&self, n: usize) -> Member {
        let standbys = self.standbys();
        assert!(n < standbys.len(), "the cluster has {} standbys, and so no standby {n}", standbys.len());
        standbys[n].clone()
    }

    /// All standbys.
    #[must_use]
    pub fn standbys(&self) -> Vec<Member> {
        let is_standby = |node: &&Node| matches!(node.role, Role::Standby { .. });
        self.nodes.iter().filter(is_standby).map(|node| node.member.clone()).collect()
    }

    /// All members: the primary, the standbys, and former primaries.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.nodes.iter().map(|node| node.member.clone()).collect()
    }

    /// What the server of a member has logged so far.
    ///
    /// # Errors
    ///
    /// [`Error::Cluster`] when the file cannot be read.
    pub fn log(&self, member: &Member) -> Result<String, Error> {
        self.nodes[self.number(member)].log()
    }

    /// The number of a member, which is its place among the nodes.
    ///
    /// # Panics
    ///
    /// When it is a member of another cluster: an error in the test.
    fn number(&self, member: &Member) -> usize {
        let ours = self.nodes.get(member.number()).is_some_and(|node| node.member == *member);
        assert!(ours, "{member:?} is a member of another cluster");
        member.number()
    }

    /// The number of a standby.
    fn standby_number(&self, member: &Member, action: &'static str) -> Result<usize, Error> {
        let number = self.number(member);
        match self.nodes[number].role {
            Role::Standby { .. } => Ok(number),
            role => Err(Error::Role { action, member: number, role: role.name() }),
        }
    }

    /// Starts a server, and waits until it lets clients in. The caller has the deadline.
    async fn launch(&mut self, number: usize) -> Result<(), Error> {
        loop {
            self.spawn(number)?;
            match self.nodes[number].up().await {
                // After a kill: the processes of the last one need a moment to notice.
                Err(Error::ClusterProgram { log, .. }) if log.contains(STILL_ATTACHED) => {
                    tokio::time::sleep(PAUSE).await;
                }
                ended => return ended,
            }
        }
    }

    fn spawn(&mut self, number: usize) -> Result<(), Error> {
        self.write_settings(number)?;
        let running = self.running();
        self.nodes[number].process = Some(self.home.spawn(&self.programs, number, &running)?);
        Ok(())
    }

    /// Stops a server, and waits until its process has ended. The caller has the deadline.
    async fn end(&mut self, number: usize, signal: Signal) -> Result<(), Error> {
        self.nodes[number].signal(signal)?;
        self.nodes[number].stopped().await;
        let running = self.running();
        self.home.watch(&running)
    }

    fn running(&mut self) -> Vec<u32> {
        let running = self.nodes.iter_mut().filter_map(|node| {
            let runs = node.is_running();
            node.process.as_ref().filter(|_| runs).map(std::process::Child::id)
        });
        running.collect()
    }

    /// Writes whom a member follows, besides everything else.
    fn write_settings(&self, number: usize) -> Result<(), Error> {
        let node = &self.nodes[number];
        let primary = &self.nodes[self.primary].member;
        let follows = (node.role == Role::Standby { joined: true }).then_some(primary);
        fs::write(self.home.settings(number), settings::file(&node.member, follows, &self.own))
            .map_err(failed("write the settings of a member"))
    }

    /// Has a member read its settings again.
    fn reload(&mut self, number: usize) -> Result<(), Error> {
        self.write_settings(number)?;
        self.nodes[number].signal(Signal::SIGHUP)
    }

    /// Asks a member for one value, in a session of its own. The caller has the deadline.
    async fn ask<T>(&self, number: usize, action: &'static str, sql: &str) -> Result<T, Error>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let database = format!("member {number}");
        let options = self.nodes[number].member.asking();
        let connected = options.connect().await;
        let mut connection = connected.map_err(|source| Error::Connect {
            database: database.clone(),
            server: "the cluster",
            source,
        })?;
        let answer = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        close(connection).await;
        answer.map_err(|source| Error::Statement { action, database, source })
    }

    /// Asks a member until it says yes. The caller has the deadline.
    async fn until(&self, number: usize, action: &'static str, sql: &str) -> Result<(), Error> {
        while !self.ask::<bool>(number, action, sql).await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once. The last signal wakes one that a test has frozen.
        for signal in [Signal::SIGQUIT, Signal::SIGCONT] {
            for node in &mut self.nodes {
                if let Err(error) = node.signal(signal) {
                    tracing::warn!(%error, "the guard has to end a server of a cluster");
                }
            }
        }
        // It ends its own processes within 5 seconds, by force if it must.
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            if let Err(error) = process.wait() {
                tracing::warn!(%error, "cannot wait for a server of a cluster");
            }
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles = self.nodes.iter().map(|node| (node.member.number(), node.role));
        f.debug_map().entries(roles).finish()
    }
}

/// Gives a method its deadline.
async fn within<T>(
    patience: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let begun = Instant::now();
    match tokio::time::timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::TimedOut { what, waited: begun.elapsed() }),
    }
}

/// The deadline of most methods.
async fn in_time<T>(what: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    within(PATIENCE, what, work).await
}
