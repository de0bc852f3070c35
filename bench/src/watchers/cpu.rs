//! The processor time of the server's processes.

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

/// The processor time of each process, in nanoseconds. `stat` counts in hundredths of a second, and a session here may use less than
/// one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy(BTreeMap<u32, u64>);

impl Server {
    pub(super) async fn of(config: &Config) -> anyhow::Result<Self> {
        let mut conn = config.as_sqlx().connect().await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await?;
        let pid = u32::try_from(pid)?;
        // For a server on another machine or in a container, the number belongs to another process, or to none.
        let elsewhere = || format!("the server's processes must be visible, but {pid} is not");
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).with_context(elsewhere)?;
        ensure!(name.trim() == "postgres", "{}: the process is {name}", elsewhere());
        let postmaster = parent(pid).with_context(elsewhere)?;
        conn.close().await?;
        Ok(Self { postmaster })
    }

    /// All processes of the server, its sessions and its own.
    pub(super) fn busy(self) -> anyhow::Result<Busy> {
        let mut busy = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if pid == self.postmaster || parent(pid) == Some(self.postmaster) {
                // A process that has just ended is gone.
                if let Some(time) = processor_time(pid) {
                    busy.insert(pid, time);
                }
            }
        }
        ensure!(busy.contains_key(&self.postmaster), "the kernel does not report processor time");
        Ok(Busy(busy))
    }
}

impl Busy {
    /// The total since an earlier sample. The time of sessions that have ended since is not known.
    pub(super) fn since(&self, before: &Self) -> Duration {
        let of = |(pid, now): (&u32, &u64)| now.saturating_sub(before.0.get(pid).copied().unwrap_or(0));
        Duration::from_nanos(self.0.iter().map(of).sum())
    }
}

fn parent(pid: u32) -> Option<u32> {
    parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The parent. The name, in brackets, may contain any character.
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
    fn a_process_is_found_by_its_parent_whatever_its_name() {
        assert_eq!(parent_in("17 (postgres) S 4 17 17 0"), Some(4));
        assert_eq!(parent_in("17 (a) R 9 (b) S 4 17"), Some(4));
        assert_eq!(parent_in("17"), None);
    }

    #[test]
    fn only_the_time_since_the_earlier_sample_counts_even_of_new_processes() {
        let before = Busy([(1, 100), (2, 50), (3, 7)].into());
        let now = Busy([(1, 130), (2, 50), (4, 20)].into());

        assert_eq!(now.since(&before), Duration::from_nanos(50));
    }
}
