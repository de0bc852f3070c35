//! The handle that a service keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use db_core::encryption::Keyring;
use db_core::{Closed, Handle, Pool};
use db_events::EventLog;
use db_notify::Bus;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::Health;

/// So much of a shutdown's deadline, at most, is kept for what the bus has still to send.
const BUS_SHARE: Duration = Duration::from_secs(1);

/// An open database. Cheap to clone; clones are the same database. Fit for axum's `State`.
#[derive(Debug, Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

/// The pools, by the work they are for.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) api: Pool,
    pub(crate) backend: Pool,
    pub(crate) named: Vec<Pool>,
}

#[derive(Debug)]
struct Inner {
    pools: Pools,
    bus: Bus,
    events: EventLog,
    keyring: Option<Arc<Keyring>>,
    closing: CancellationToken,
}

/// What a shutdown could not end in time, and what it had to cut.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// The bus sent what waited and closed its connections.
    pub bus_closed: bool,
    /// How the API pool was closed.
    pub api: Closed,
    /// How the backend pool was closed.
    pub backend: Closed,
    /// How the further pools were closed, by their names.
    pub named: Vec<(String, Closed)>,
}

impl Shutdown {
    /// Whether all work was finished and everything closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bus_closed
            && self.api.is_clean()
            && self.backend.is_clean()
            && self.named.iter().all(|(_, closed)| closed.is_clean())
    }
}

impl Db {
    pub(crate) fn new(pools: Pools, bus: Bus, events: EventLog, keyring: Option<Arc<Keyring>>) -> Self {
        let closing = CancellationToken::new();
        Self { inner: Arc::new(Inner { pools, bus, events, keyring, closing }) }
    }

    /// The pool for web requests, as a sqlx executor that remembers this line.
    #[must_use]
    #[track_caller]
    pub fn api(&self) -> Handle {
        self.inner.pools.api.handle()
    }

    /// The pool for background work, as a sqlx executor that remembers this line.
    #[must_use]
    #[track_caller]
    pub fn backend(&self) -> Handle {
        self.inner.pools.backend.handle()
    }

    /// A further pool, by its name; `None` when there is none of that name.
    #[must_use]
    #[track_caller]
    pub fn pool(&self, name: &str) -> Option<Handle> {
        let pool = self.inner.pools.named.iter().find(|pool| pool.name() == name)?;
        Some(pool.handle())
    }

    /// The notification bus.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.inner.bus
    }

    /// The event logs.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        &self.inner.events
    }

    /// The keys that columns are sealed under, if there are any.
    #[must_use]
    pub fn keyring(&self) -> Option<&Keyring> {
        self.inner.keyring.as_deref()
    }

    /// Cancelled when [`Db::shutdown`] begins: what would go on for ever, such as a live stream to a browser, ends then.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.inner.closing.clone()
    }

    /// How the database stands, found out within `limit`.
    pub async fn health(&self, limit: Duration) -> Health {
        let Pools { api, backend, .. } = &self.inner.pools;
        Health::read(api, backend, &self.inner.bus, limit).await
    }

    /// Ends what would go on for ever, then closes the pools and the bus, all within `deadline`: work that is under way may
    /// finish, what remains near the end is cancelled. Says what was cut and what was not in time. Dropping the future leaves the rest of it undone.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        let started = Instant::now();
        let left = || deadline.saturating_sub(started.elapsed());
        self.inner.closing.cancel();
        // First the pools: what their last transactions have to say is sent by the bus.
        let limit = deadline.saturating_sub(BUS_SHARE.min(deadline / 4));
        let Pools { api, backend, named } = &self.inner.pools;
        let named =
            join_all(named.iter().map(async |pool| (pool.name().to_owned(), pool.close(limit).await)));
        let (api, backend, named) = tokio::join!(api.close(limit), backend.close(limit), named);
        let bus_closed = self.inner.bus.close(left()).await;
        Shutdown { bus_closed, api, backend, named }
    }
}
