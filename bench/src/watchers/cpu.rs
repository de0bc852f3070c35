//! How busy the server's processes are.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use db_core::Config;
use sqlx::{ConnectOptions, Connection};

/// A server on this machine, by its first process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    postmaster: u32,
}

/// The time that each process has had a processor, in nanoseconds. `stat` counts in hundredths of a second, of which a session
/// that is looked at here may have had less than one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy(BTreeMap<u32, u64>);

impl Server {
    pub(super) async fn of(config: &Config) -> anyhow::Result<Self> {
        let mut conn = config.as_sqlx().connect().await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await?;
        let pid = u32::try_from(pid)?;
        // Of a server on another machine, or in a container, it is the number of somebody else, or of nobody.
        let elsewhere = || format!("the server's processes are to be seen here, and {pid} is not");
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).with_context(elsewhere)?;
        ensure!(name.trim() == "postgres", "{}: it is {name}", elsewhere());
        let postmaster = parent(pid).with_context(elsewhere)?;
        conn.close().await?;
        Ok(Self { postmaster })
    }

    /// All of its processes, the sessions and those that it has for itself.
    pub(super) fn busy(self) -> anyhow::Result<Busy> {
        let mut busy = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if pid == self.postmaster || parent(pid) == Some(self.postmaster) {
                // One that has just ended is gone.
                if let Some(time) = processor_time(pid) {
                    busy.insert(pid, time);
                }
            }
        }
        ensure!(busy.contains_key(&self.postmaster), "the kernel does not tell who was busy how long");
        Ok(Busy(busy))
    }
}

impl Busy {
    /// Together, since an earlier moment. Sessions are expected to last: of one that has ended since, nothing is known.
    pub(super) fn since(&self, before: &Self) -> Duration {
        let of = |(pid, now): (&u32, &u64)| now.saturating_sub(before.0.get(pid).copied().unwrap_or(0));
        Duration::from_nanos(self.0.iter().map(of).sum())
    }
}

fn parent(pid: u32) -> Option<u32> {
    parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name, in brackets, may have anything in it.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(1)?.parse().ok()
}

fn processor_time(pid: u32) -> Option<u64> {
    let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    schedstat.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_parent_whatever_its_name_is() {
        assert_eq!(parent_in("17 (postgres) S 4 17 17 0"), Some(4));
        assert_eq!(parent_in("17 (a) R 9 (b) S 4 17"), Some(4));
        assert_eq!(parent_in("17"), None);
    }

    #[test]
    fn what_counts_is_what_came_since_be_it_of_new_processes() {
        let before = Busy([(1, 100), (2, 50), (3, 7)].into());
        let now = Busy([(1, 130), (2, 50), (4, 20)].into());

        assert_eq!(now.since(&before), Duration::from_nanos(50));
    }
}
