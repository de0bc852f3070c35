//! How a cluster starts.

use std::path::PathBuf;
use std::time::Duration;

use db_embedded::Programs;

use super::home::Home;
use super::member::Member;
use super::node::{Node, Role};
use super::{Cluster, archive, within};
use crate::error::Error;

/// For `initdb` and the start of all servers.
const PATIENCE: Duration = Duration::from_mins(1);

/// Chooses how a [`Cluster`] starts.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct ClusterBuilder {
    standbys: usize,
    settings: Vec<(String, String)>,
    programs: Option<PathBuf>,
    folder: Option<PathBuf>,
}

impl Default for ClusterBuilder {
    fn default() -> ClusterBuilder {
        ClusterBuilder { standbys: 1, settings: Vec::new(), programs: None, folder: None }
    }
}

impl ClusterBuilder {
    /// How many standbys (default 1).
    pub fn standbys(mut self, count: usize) -> ClusterBuilder {
        self.standbys = count;
        self
    }

    /// A parameter of all servers, as in `postgresql.conf`, such as `synchronous_standby_names`. A standby is `member1`,
    /// `member2` and so on there. The last one wins, over the kit's own as well. A standby does not start with a
    /// `max_connections` below 100.
    ///
    /// # Panics
    ///
    /// When there is a line break in it.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> ClusterBuilder {
        let (name, value) = (name.into(), value.into());
        assert!(!name.contains('\n') && !value.contains('\n'), "the setting {name:?} has a line break");
        self.settings.push((name, value));
        self
    }

    /// The folder of the PostgreSQL programs; no other place is then looked at.
    pub fn programs(mut self, folder: impl Into<PathBuf>) -> ClusterBuilder {
        self.programs = Some(folder.into());
        self
    }

    /// Where the cluster makes its private folder, such as for more data than the memory holds. Otherwise in memory, in
    /// `/dev/shm`, if that has 1 GB left, and else in the folder for temporary files. The servers' account must be able to make
    /// files there, and the path must have 50 characters at most, for the sockets.
    pub fn folder(mut self, parent: impl Into<PathBuf>) -> ClusterBuilder {
        self.folder = Some(parent.into());
        self
    }

    /// Starts all servers, and waits until clients can connect to each and each standby receives from the primary.
    ///
    /// Takes some 300 ms with one standby, and half a second more for the first cluster of a version, whose data `initdb` makes.
    /// Cancel-safe: servers that are starting end.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] when there are no usable programs; [`Error::ClusterProgram`] when one of them fails, with what it
    /// said; [`Error::Cluster`] when the operating system refuses something; [`Error::TimedOut`] after 60 seconds.
    pub async fn start(self) -> Result<Cluster, Error> {
        within(PATIENCE, "the cluster to start", self.start_all()).await
    }

    async fn start_all(self) -> Result<Cluster, Error> {
        let folder = self.programs;
        let found = tokio::task::spawn_blocking(move || Programs::find(folder.as_deref())).await;
        let programs = found.expect("the search does not panic").map_err(Error::Server)?;
        let home = Home::make(&programs, self.folder)?;
        let archive = archive::find_or_make(&programs, &home).await?;
        let mut nodes = Vec::new();
        for number in 0..=self.standbys {
            let role = if number == 0 { Role::Primary } else { Role::Standby { joined: true } };
            nodes.push(Node::new(Member::new(number, home.sockets())?, role, &home));
        }
        let unpacked: Result<Vec<_>, Error> =
            (0..nodes.len()).map(|number| home.unpack(&programs, &archive, number)).collect();
        for job in unpacked? {
            job.end().await?;
        }
        let mut cluster = Cluster { nodes, primary: 0, own: self.settings, programs, home };
        for number in 0..cluster.nodes.len() {
            if number > 0 {
                cluster.mark_standby(number).await?;
            }
            cluster.spawn(number)?;
        }
        for number in 0..cluster.nodes.len() {
            cluster.nodes[number].up().await?;
        }
        for number in 1..cluster.nodes.len() {
            cluster.until_streaming(number).await?;
        }
        Ok(cluster)
    }
}
