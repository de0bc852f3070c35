//! Closing pools and bus in order, within deadlines.

use std::fmt;
use std::time::{Duration, Instant};

use db_core::{Closed, Pool};
use futures_util::future::join_all;

use crate::Db;
use crate::db::Pools;

/// How much of a shutdown's single deadline is reserved, at most, for what the bus still has to send.
const BUS_SHARE: Duration = Duration::from_secs(1);

/// How long each phase of a shutdown may take. Time that a phase does not use is not added to the next one.
///
/// The supervisor's limit before it kills the process must be longer than their [total](Self::total):
/// `terminationGracePeriodSeconds` of Kubernetes (default 30 s), `--stop-timeout` of Docker (default 10 s), `TimeoutStopSec` of
/// systemd (default 90 s).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the service to end: its requests, live streams, workers (default 15 s).
    pub service: Duration,
    /// For the pools (default 5 s). Work that outlives the service may go on until a quarter of this time is left, but at most
    /// 1 s; then its statements are cancelled, and at the end its sessions.
    pub pools: Duration,
    /// For the bus to send the notifications of the last transactions, and at the same time for the last commands to Redis (default 2 s).
    pub bus: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { service: Duration::from_secs(15), pools: Duration::from_secs(5), bus: Duration::from_secs(2) }
    }
}

impl Deadlines {
    /// The longest time that a shutdown takes.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.service.saturating_add(self.pools).saturating_add(self.bus)
    }
}

/// What a shutdown could not close in time, and what it cancelled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Shutdown {
    /// How the API pool was closed.
    pub api: Closed,
    /// How the backend pool was closed.
    pub backend: Closed,
    /// How the further pools were closed, by name.
    pub named: Vec<(String, Closed)>,
    /// How long closing the pools took; all close at the same time.
    pub pools_took: Duration,
    /// Whether the bus sent everything in its queue and closed its connections in time.
    pub bus_closed: bool,
    /// How long closing the bus took, counted from the end of the pools.
    pub bus_took: Duration,
    /// Whether the commands to Redis were answered, and its connection closed, in time. True without Redis.
    pub redis_closed: bool,
}

impl Shutdown {
    /// Whether all work finished and everything closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bus_closed && self.redis_closed && self.pools().all(|(_, closed)| closed.is_clean())
    }

    fn pools(&self) -> impl Iterator<Item = (&str, &Closed)> {
        let named = self.named.iter().map(|(name, closed)| (name.as_str(), closed));
        [("api", &self.api), ("backend", &self.backend)].into_iter().chain(named)
    }
}

impl Db {
    /// Cancels [`Db::closing`], then closes the pools and after them the bus and the connection to Redis, all within `deadline`. Running work may finish;
    /// what remains near the deadline is cancelled. The result says what was cancelled and what did not close in time.
    ///
    /// The bus closes last, since the pools' last transactions queue their notifications at their commit.
    /// [`Db::shutdown_on_signal`] also lets the service finish first.
    ///
    /// Dropping the future leaves the pools closed to new work, and closed what is closed. Call it again to go on from there.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        let started = Instant::now();
        let pools = deadline.saturating_sub(BUS_SHARE.min(deadline / 4));
        self.close(pools, || deadline.saturating_sub(started.elapsed())).await
    }

    /// Closes the pools within one deadline, then the bus within another.
    pub(crate) async fn close(&self, pools: Duration, bus: impl FnOnce() -> Duration) -> Shutdown {
        self.closing().cancel();
        if let Some(holding) = self.holding() {
            // Before the pools close, since it takes a connection; others then need not wait for the end of its lease.
            holding.leave().await;
        }
        self.monitor().stop().await;
        let started = Instant::now();
        let Pools { api, backend, named } = self.pools();
        let named =
            join_all(named.iter().map(async |pool: &Pool| (pool.name().to_owned(), pool.close(pools).await)));
        let (api, backend, named, ()) =
            tokio::join!(api.close(pools), backend.close(pools), named, self.pulse().stop());
        let pools_took = started.elapsed();
        let mut report = Shutdown {
            api,
            backend,
            named,
            pools_took,
            bus_closed: false,
            bus_took: Duration::ZERO,
            redis_closed: false,
        };
        let cut = Cut(&report).to_string();
        if cut.is_empty() {
            tracing::info!(took = seconds(pools_took), "pools closed");
        } else {
            tracing::warn!(took = seconds(pools_took), "pools closed, not all in time: {cut}");
        }

        let started = Instant::now();
        let limit = bus();
        // Whatever ran on the pools may have used it.
        (report.bus_closed, report.redis_closed) =
            tokio::join!(self.bus().close(limit), self.close_redis(limit));
        report.bus_took = started.elapsed();
        if report.bus_closed {
            tracing::info!(took = seconds(report.bus_took), "bus closed");
        } else {
            tracing::warn!(
                took = seconds(report.bus_took),
                "bus not closed in time: notifications in its queue are lost; readers find the data when they poll"
            );
        }
        report
    }
}

impl Db {
    async fn close_redis(&self, limit: Duration) -> bool {
        #[cfg(feature = "redis")]
        if let Some(redis) = self.redis() {
            let is_closed = redis.close(limit).await;
            if !is_closed {
                tracing::warn!("redis not closed in time: a command to it was not answered");
            }
            return is_closed;
        }
        #[cfg(not(feature = "redis"))]
        let _ = limit;
        true
    }
}

/// For a line of the log.
pub(crate) fn seconds(time: Duration) -> impl tracing::Value {
    tracing::field::display(format!("{:.3}s", time.as_secs_f64()))
}

/// What closing the pools cancelled, by pool; empty if it cancelled nothing.
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
                item(f, format_args!("pool `{pool}` cancelled {holder}"))?;
            }
            if closed.unnamed > 0 {
                item(
                    f,
                    format_args!("pool `{pool}` cancelled {} holders without a tracker", closed.unnamed),
                )?;
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
