//! Closing pools and bus, in an order and within deadlines.

use std::fmt;
use std::time::{Duration, Instant};

use db_core::{Closed, Pool};
use futures_util::future::join_all;

use crate::Db;
use crate::db::Pools;

/// So much of a shutdown's one deadline, at most, is kept for what the bus has still to send.
const BUS_SHARE: Duration = Duration::from_secs(1);

/// How long each phase of a shutdown may take. A phase that ends early makes the shutdown shorter, and one that takes its
/// whole time takes none of the next one's.
///
/// Whoever kills the process at last has to wait for longer than their [total](Self::total): Kubernetes for
/// `terminationGracePeriodSeconds`, 30 s unless told otherwise, Docker for `--stop-timeout`, 10 s, and systemd for
/// `TimeoutStopSec`, 90 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For what the service is at when it is asked to end: requests, live streams, workers [15 s].
    pub service: Duration,
    /// For the pools [5 s]. Work that outlives the service may go on until a quarter of it, but one second at most, is left;
    /// then its statements are cancelled, and in the end its sessions.
    pub pools: Duration,
    /// For the bus to send what the last transactions had to say [2 s].
    pub bus: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { service: Duration::from_secs(15), pools: Duration::from_secs(5), bus: Duration::from_secs(2) }
    }
}

impl Deadlines {
    /// The longest that a shutdown takes.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.service.saturating_add(self.pools).saturating_add(self.bus)
    }
}

/// What a shutdown could not end in time, and what it had to cut.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Shutdown {
    /// How the API pool was closed.
    pub api: Closed,
    /// How the backend pool was closed.
    pub backend: Closed,
    /// How the further pools were closed, by their names.
    pub named: Vec<(String, Closed)>,
    /// How long that took: all pools close at the same time.
    pub pools_took: Duration,
    /// The bus sent what waited and closed its connections.
    pub bus_closed: bool,
    /// How long that took, after the pools.
    pub bus_took: Duration,
}

impl Shutdown {
    /// Whether all work was finished and everything closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bus_closed && self.pools().all(|(_, closed)| closed.is_clean())
    }

    fn pools(&self) -> impl Iterator<Item = (&str, &Closed)> {
        let named = self.named.iter().map(|(name, closed)| (name.as_str(), closed));
        [("api", &self.api), ("backend", &self.backend)].into_iter().chain(named)
    }
}

impl Db {
    /// Ends what would go on for ever, then closes the pools and after them the bus, all within `deadline`: work that is under
    /// way may finish, what remains near the end is cancelled. Says what was cut and what was not in time.
    ///
    /// The bus comes last, since the pools' last transactions tell it after their commit what to send. [`Db::shutdown_on_signal`]
    /// lets the service finish before any of this.
    ///
    /// Dropping the future leaves closed what is closed, and the pools to new work. It may be called again, and goes on from there.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        let started = Instant::now();
        let pools = deadline.saturating_sub(BUS_SHARE.min(deadline / 4));
        self.close(pools, || deadline.saturating_sub(started.elapsed())).await
    }

    /// Closes the pools within one deadline, then the bus within another.
    pub(crate) async fn close(&self, pools: Duration, bus: impl FnOnce() -> Duration) -> Shutdown {
        self.closing().cancel();
        let started = Instant::now();
        let Pools { api, backend, named } = self.pools();
        let named =
            join_all(named.iter().map(async |pool: &Pool| (pool.name().to_owned(), pool.close(pools).await)));
        let (api, backend, named) = tokio::join!(api.close(pools), backend.close(pools), named);
        let pools_took = started.elapsed();
        let mut report =
            Shutdown { api, backend, named, pools_took, bus_closed: false, bus_took: Duration::ZERO };
        let cut = Cut(&report).to_string();
        if cut.is_empty() {
            tracing::info!(took = seconds(pools_took), "pools closed");
        } else {
            tracing::warn!(took = seconds(pools_took), "pools closed, not all in time: {cut}");
        }

        let started = Instant::now();
        report.bus_closed = self.bus().close(bus()).await;
        report.bus_took = started.elapsed();
        if report.bus_closed {
            tracing::info!(took = seconds(report.bus_took), "bus closed");
        } else {
            tracing::warn!(
                took = seconds(report.bus_took),
                "bus not closed in time: what it had still to send is lost, and subscribers find it by looking"
            );
        }
        report
    }
}

/// For a line of the log.
pub(crate) fn seconds(time: Duration) -> impl tracing::Value {
    tracing::field::display(format!("{:.3}s", time.as_secs_f64()))
}

/// What the pools' closing cut, by pool; nothing if it cut nothing.
struct Cut<'a>(&'a Shutdown);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        let mut item = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            write!(f, "{before}{text}")?;
            before = "; ";
            Ok(())
        };
        for (pool, closed) in self.0.pools() {
            for holder in &closed.aborted {
                item(f, format_args!("pool `{pool}` cut off {holder}"))?;
            }
            if closed.unnamed > 0 {
                item(f, format_args!("pool `{pool}` cut off {} without a tracker", closed.unnamed))?;
            }
            if !closed.in_time {
                item(f, format_args!("pool `{pool}` still has connections out"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_fits_into_what_kubernetes_grants_unless_told_otherwise() {
        let granted = Duration::from_secs(30);

        assert!(Deadlines::default().total() + Duration::from_secs(5) <= granted);
        let endless = Deadlines { service: Duration::MAX, ..Deadlines::default() };
        assert_eq!(endless.total(), Duration::MAX);
    }
}
