//! The handle that a service keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use db_core::encryption::Keyring;
use db_core::{Closed, Handle, Pool};
use db_events::EventLog;
use db_notify::Bus;
use tokio_util::sync::CancellationToken;

use crate::Health;

/// An open database. Cheap to clone; clones are the same database. Fit for axum's `State`.
#[derive(Debug, Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    api: Pool,
    backend: Pool,
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
}

impl Shutdown {
    /// Whether all work was finished and everything closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bus_closed && self.api.is_clean() && self.backend.is_clean()
    }
}

impl Db {
    pub(crate) fn new(
        api: Pool,
        backend: Pool,
        bus: Bus,
        events: EventLog,
        keyring: Option<Arc<Keyring>>,
    ) -> Self {
        let closing = CancellationToken::new();
        Self { inner: Arc::new(Inner { api, backend, bus, events, keyring, closing }) }
    }

    /// The pool for web requests, as a sqlx executor that remembers this line.
    #[must_use]
    #[track_caller]
    pub fn api(&self) -> Handle {
        self.inner.api.handle()
    }

    /// The pool for background work, as a sqlx executor that remembers this line.
    #[must_use]
    #[track_caller]
    pub fn backend(&self) -> Handle {
        self.inner.backend.handle()
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
        Health::read(&self.inner.api, &self.inner.backend, &self.inner.bus, limit).await
    }

    /// Ends what would go on for ever, then closes the bus and the pools, all within `deadline`: work that is under way may
    /// finish, what remains near the end is cancelled. Says what was cut and what was not in time. Dropping the future leaves the rest of it undone.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        let started = Instant::now();
        let left = || deadline.saturating_sub(started.elapsed());
        self.inner.closing.cancel();
        let bus_closed = self.inner.bus.close(left()).await;
        let limit = left();
        let (api, backend) = tokio::join!(self.inner.api.close(limit), self.inner.backend.close(limit));
        Shutdown { bus_closed, api, backend }
    }
}
