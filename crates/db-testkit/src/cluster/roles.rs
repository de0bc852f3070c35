//! What a test does to the members of a cluster.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::node::Role;
use super::programs::Job;
use super::settings::conninfo;
use super::{Cluster, Member, STILL_ATTACHED, in_time};
use crate::error::Error;
use crate::stop::Stop;
use crate::until::PAUSE;

/// The first 8 digits of a WAL file's name. The control file says the old one until the checkpoint after a promotion.
const TIMELINE: &str = "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4";

impl Cluster {
    /// Makes a standby the primary, and returns when it takes writes. Its sessions live on.
    ///
    /// The former primary stays as it is: if it runs, both take writes, and [`stop`](Cluster::stop) before the promotion is what
    /// the loss of a primary looks like. The other standbys that are joined follow the new primary from now on;
    /// one that has received more than the new primary cannot.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no standby; [`Error::Connect`] and [`Error::Statement`] when it cannot be asked;
    /// [`Error::TimedOut`] after 20 seconds.
    pub async fn promote(&mut self, standby: &Member) -> Result<(), Error> {
        let number = self.standby_number(standby, "promote")?;
        in_time("the standby to take writes", self.take_over(number)).await
    }

    /// Makes a former primary a standby of the primary: stops it if it runs, takes back by `pg_rewind` what it has written
    /// since the two parted, and starts it. Returns when it receives from the primary.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no former primary; [`Error::Server`] with [`NoProgram`](db_embedded::Error::NoProgram)
    /// when the PostgreSQL package lacks `pg_rewind`, before anything is stopped; [`Error::ClusterProgram`] when that program
    /// or the server fails, with what it said; [`Error::Connect`] and [`Error::Statement`] when the primary cannot be
    /// asked; [`Error::TimedOut`] after 20 seconds.
    pub async fn demote(&mut self, former: &Member) -> Result<(), Error> {
        let number = self.number(former);
        let role = self.nodes[number].role;
        if role != Role::Former {
            return Err(Error::Role { action: "demote", member: number, role: role.name() });
        }
        let pg_rewind = self.programs.path("pg_rewind").map_err(Error::Server)?;
        in_time("the former primary to become a standby", async {
            self.end(number, Signal::SIGINT).await?;
            // Until its next checkpoint, a promoted server's own files say that it is on the old timeline.
            self.checkpoint().await?;
            loop {
                let mut command = self.programs.command(&pg_rewind);
                command.args(["--no-sync", "--target-pgdata"]).arg(self.home.data(number));
                command.arg("--source-server").arg(conninfo(&self.nodes[self.primary].member));
                command.stdin(Stdio::null()).stdout(Stdio::null());
                let job = Job::begin(command, "rewind a former primary", self.home.job_log(number))?;
                match job.end().await {
                    // After a kill: the processes of the server need a moment to notice.
                    Err(Error::ClusterProgram { log, .. }) if log.contains(STILL_ATTACHED) => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    done => break done?,
                }
            }
            self.follow(number).await
        })
        .await
    }

    /// The primary and a standby change places, and nothing is lost: the primary ends after the standby has received all that
    /// it has, the standby is promoted, and the former primary comes back as its standby. Needs no `pg_rewind`.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no standby, or is cut off; [`Error::ClusterProgram`] when a server does not start;
    /// [`Error::Connect`] and [`Error::Statement`] when a server cannot be asked; [`Error::TimedOut`] after 20 seconds.
    pub async fn switch_over(&mut self, standby: &Member) -> Result<(), Error> {
        let number = self.joined_number(standby, "switch over to")?;
        let former = self.primary;
        in_time("the primary and a standby to change places", async {
            self.until_streaming(number).await?;
            self.end(former, Signal::SIGINT).await?;
            self.take_over(number).await?;
            self.follow(former).await
        })
        .await
    }

    /// Stops the server of a member, if it runs, and waits until its process has ended. It stays stopped. Its role is
    /// what it was.
    ///
    /// # Errors
    ///
    /// [`Error::Signal`], and [`Error::TimedOut`] after 20 seconds.
    pub async fn stop(&mut self, member: &Member, how: Stop) -> Result<(), Error> {
        let number = self.number(member);
        in_time("a member of the cluster to stop", self.end(number, how.signal())).await
    }

    /// Starts the server of a member that was [stopped](Cluster::stop) or has ended, as what it was, and waits until clients can
    /// connect. A former primary is not rewound: it takes writes beside the new primary. Nothing happens when it runs.
    ///
    /// # Errors
    ///
    /// [`Error::ClusterProgram`] when it ends again, with what it said; [`Error::Cluster`] when the operating system refuses
    /// something; [`Error::TimedOut`] after 20 seconds.
    pub async fn start_again(&mut self, member: &Member) -> Result<(), Error> {
        let number = self.number(member);
        if self.nodes[number].is_running() {
            return Ok(());
        }
        in_time("a member of the cluster to start", self.launch(number)).await
    }

    /// Stops the replay on a standby: it goes on to receive what the primary writes, and its readers see no change.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no standby; [`Error::Connect`] and [`Error::Statement`] when it cannot be asked;
    /// [`Error::TimedOut`] after 20 seconds.
    pub async fn pause(&self, standby: &Member) -> Result<(), Error> {
        let number = self.standby_number(standby, "pause the replay on")?;
        in_time("the replay to pause", async {
            let sql = "select pg_wal_replay_pause() is not null, pg_get_wal_replay_pause_state() = 'paused'";
            let sql = format!("select paused from ({sql}) as asked (_, paused)");
            self.until(number, "pause the replay on", &sql).await
        })
        .await
    }

    /// Lets a standby that was [paused](Cluster::pause) replay again.
    ///
    /// # Errors
    ///
    /// As [`pause`](Cluster::pause) has them.
    pub async fn resume(&self, standby: &Member) -> Result<(), Error> {
        let number = self.standby_number(standby, "resume the replay on")?;
        in_time("the replay to resume", async {
            let sql =
                "select pg_wal_replay_resume() is not null, pg_get_wal_replay_pause_state() = 'not paused'";
            let sql = format!("select resumed from ({sql}) as asked (_, resumed)");
            self.until(number, "resume the replay on", &sql).await
        })
        .await
    }

    /// Cuts a standby off from the primary: it receives nothing more, also from a later primary, until it is
    /// [joined](Cluster::join). What a running primary has written before this call, it has received; a paused one does not
    /// replay it.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no standby; [`Error::Connect`] and [`Error::Statement`] when it or a running primary cannot be
    /// asked; [`Error::Signal`]; [`Error::TimedOut`] after 20 seconds.
    pub async fn part(&mut self, standby: &Member) -> Result<(), Error> {
        let number = self.joined_number(standby, "cut off")?;
        in_time("the standby to be cut off", async {
            let primary = self.primary;
            if self.nodes[primary].is_running() {
                let end = self.end_of_wal().await?;
                while self.lag_behind(number, &end).await?.unreceived > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            self.nodes[number].role = Role::Standby { joined: false };
            self.reload(number)?;
            self.until_cut_off(number).await
        })
        .await
    }

    /// Joins a standby that was [cut off](Cluster::part) to the primary, and returns when it receives from it.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no standby; [`Error::Connect`] and [`Error::Statement`] when it cannot be asked;
    /// [`Error::TimedOut`] after 20 seconds, also when it has more than the primary and so cannot follow: its
    /// [`log`](Cluster::log) says so.
    pub async fn join(&mut self, standby: &Member) -> Result<(), Error> {
        let number = self.standby_number(standby, "join")?;
        in_time("the standby to receive from the primary", async {
            self.nodes[number].role = Role::Standby { joined: true };
            self.reload(number)?;
            self.until_streaming(number).await
        })
        .await
    }

    /// The number of a standby that follows the primary.
    fn joined_number(&self, member: &Member, action: &'static str) -> Result<usize, Error> {
        let number = self.standby_number(member, action)?;
        match self.nodes[number].role {
            Role::Standby { joined: true } => Ok(number),
            role => Err(Error::Role { action, member: number, role: role.name() }),
        }
    }

    async fn take_over(&mut self, number: usize) -> Result<(), Error> {
        self.ask::<bool>(number, "promote", "select pg_promote(wait => false)").await?;
        self.until(number, "promote", "select not pg_is_in_recovery()").await?;
        self.nodes[self.primary].role = Role::Former;
        self.nodes[number].role = Role::Primary;
        self.primary = number;
        for other in 0..self.nodes.len() {
            if self.nodes[other].role == (Role::Standby { joined: true }) {
                self.reload(other)?;
            }
        }
        Ok(())
    }

    /// Starts a server that is stopped as a standby of the primary.
    async fn follow(&mut self, number: usize) -> Result<(), Error> {
        self.mark_standby(number).await?;
        self.nodes[number].role = Role::Standby { joined: true };
        self.launch(number).await?;
        self.until_streaming(number).await
    }

    /// Makes the file by which a server knows that it is a standby, as the account that will remove it.
    pub(super) async fn mark_standby(&self, number: usize) -> Result<(), Error> {
        let mut command = self.programs.command("touch");
        command.arg(self.home.data(number).join("standby.signal")).stdin(Stdio::null()).stdout(Stdio::null());
        Job::begin(command, "mark a standby", self.home.job_log(number))?.end().await
    }

    /// Waits until a standby receives on the primary's timeline. One that has more than the primary also receives for a moment,
    /// but on the timeline before.
    pub(super) async fn until_streaming(&self, number: usize) -> Result<(), Error> {
        let timeline: i32 = self.ask(self.primary, "ask for the timeline of", TIMELINE).await?;
        let sql = format!(
            "select exists (select from pg_stat_wal_receiver where status = 'streaming' and received_tli = {timeline})"
        );
        self.until(number, "ask for the receiver of", &sql).await
    }

    /// Ends the receiver: where the replay is paused, the server would let it go on.
    async fn until_cut_off(&self, number: usize) -> Result<(), Error> {
        let sql = "select (select pid from pg_stat_wal_receiver)";
        while let Some(pid) = self.ask::<Option<i32>>(number, "ask for the receiver of", sql).await? {
            match kill(Pid::from_raw(pid), Signal::SIGTERM) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(Error::Signal { pid, source: error.into() }),
            }
        }
        Ok(())
    }

    async fn checkpoint(&self) -> Result<(), Error> {
        use sqlx::{ConnectOptions, Executor};
        let database = format!("member {}", self.primary);
        let connected = self.nodes[self.primary].member.asking().connect().await;
        let mut connection = connected.map_err(|source| Error::Connect {
            database: database.clone(),
            server: "the cluster",
            source,
        })?;
        let done = connection.execute("checkpoint").await;
        super::close(connection).await;
        done.map_err(|source| Error::Statement { action: "make a checkpoint of", database, source })?;
        Ok(())
    }
}
