//! The handle that a service keeps.

use std::sync::Arc;

use db_core::encryption::Keys;
use db_core::{Handle, Pool};
use db_events::EventLogs;
use db_notify::Bus;
use tokio_util::sync::CancellationToken;

use crate::holding::Holding;
use crate::monitor::Monitor;
use crate::pulse::Pulse;
#[cfg(feature = "redis")]
use crate::redis::Redis;
use crate::redis::RedisHealth;
use crate::{Health, MonitorOptions};

/// An open database. Cheap to clone; clones share the same pools and bus. Fit for axum's `State`.
#[derive(Debug, Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

/// The pools, by purpose.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) api: Pool,
    pub(crate) backend: Pool,
    pub(crate) named: Vec<Pool>,
}

/// What is opened.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) pools: Pools,
    pub(crate) bus: Bus,
    pub(crate) events: EventLogs,
    pub(crate) holding: Option<Holding>,
    pub(crate) pulse: Pulse,
    pub(crate) instances: u32,
    #[cfg(feature = "redis")]
    pub(crate) redis: Option<Redis>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    monitor: Monitor,
    closing: CancellationToken,
    #[cfg(feature = "metrics")]
    measuring: crate::metrics::Measuring,
}

/// A database that may have been dropped.
pub(crate) struct WeakDb(std::sync::Weak<Inner>);

impl WeakDb {
    pub(crate) fn upgrade(&self) -> Option<Db> {
        self.0.upgrade().map(|inner| Db { inner })
    }
}

impl Db {
    pub(crate) fn new(parts: Parts, monitor: MonitorOptions) -> Self {
        let closing = CancellationToken::new();
        let inner = Inner {
            parts,
            monitor: Monitor::new(monitor),
            closing,
            #[cfg(feature = "metrics")]
            measuring: crate::metrics::Measuring::default(),
        };
        let db = Self { inner: Arc::new(inner) };
        db.monitor().start(&db);
        db
    }

    /// The pool for web requests, as a sqlx executor that remembers this line.
    #[must_use]
    #[track_caller]
    pub fn api(&self) -> Handle {
        self.inner.parts.pools.api.handle()
    }

    /// The pool for background work, as a sqlx executor that remembers this line.
    #[must_use]
    #[track_caller]
    pub fn backend(&self) -> Handle {
        self.inner.parts.pools.backend.handle()
    }

    /// The pool that [`Options::pool`](crate::Options::pool) added under this name, or `None`.
    #[must_use]
    #[track_caller]
    pub fn pool(&self, name: &str) -> Option<Handle> {
        let pool = self.inner.parts.pools.named.iter().find(|pool| pool.name() == name)?;
        Some(pool.handle())
    }

    /// The notification bus.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.inner.parts.bus
    }

    /// The event logs.
    #[must_use]
    pub fn events(&self) -> &EventLogs {
        &self.inner.parts.events
    }

    /// The keys that columns are sealed under, if any.
    #[must_use]
    pub fn keys(&self) -> Option<&Arc<Keys>> {
        self.inner.parts.holding.as_ref().map(Holding::keys)
    }

    /// Redis, if [`Options::redis`](crate::Options::redis) or `--redis-url` says where it is.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis(&self) -> Option<&Redis> {
        self.inner.parts.redis.as_ref()
    }

    /// How many instances of the service share the server: [`Options::instances`](crate::Options::instances), and at least 1.
    #[must_use]
    pub fn instances(&self) -> u32 {
        self.inner.parts.instances
    }

    /// Cancelled when a shutdown begins. Work without an end of its own, such as a live stream to a browser, must end then.
    /// Cancelling it starts the shutdown of a [`Db::shutdown_on_signal`] that waits.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.inner.closing.clone()
    }

    /// The state of all parts, and whether requests can be served. Asks nobody: it reads what was noted.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::read(self)
    }

    pub(crate) fn redis_health(&self) -> Option<RedisHealth> {
        #[cfg(feature = "redis")]
        return self.redis().map(Redis::health);
        #[cfg(not(feature = "redis"))]
        None
    }

    pub(crate) fn pulse(&self) -> &Pulse {
        &self.inner.parts.pulse
    }

    pub(crate) fn holding(&self) -> Option<&Holding> {
        self.inner.parts.holding.as_ref()
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.inner.parts.pools
    }

    pub(crate) fn monitor(&self) -> &Monitor {
        &self.inner.monitor
    }

    /// All pools: for web requests, for background work, and the further ones.
    pub fn all_pools(&self) -> impl Iterator<Item = &Pool> {
        let Pools { api, backend, named } = self.pools();
        [api, backend].into_iter().chain(named)
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn measuring(&self) -> &crate::metrics::Measuring {
        &self.inner.measuring
    }

    pub(crate) fn downgrade(&self) -> WeakDb {
        WeakDb(Arc::downgrade(&self.inner))
    }
}
