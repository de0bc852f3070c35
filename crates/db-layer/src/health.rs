//! The state of an open database.

use std::time::Duration;

use db_core::Stats;
use db_migrate::Summary;
use db_notify::BusState;

use crate::readiness::NotReady;
use crate::redis::RedisHealth;
use crate::{Db, SealingHealth};

/// The state of all parts of a database at one moment, by what was noted before: reading it asks nobody.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// Why requests cannot be served; `None` if they can. A bus that reconnects does not count: meanwhile streams poll. Nor does a pool whose
    /// connections are all in use, while they come back.
    pub not_ready: Option<NotReady>,
    /// Whether the database answers: it is asked every 2 s on a connection of its own, and has 1 s for the answer.
    pub database: DatabaseHealth,
    /// Seconds that the server's clock is ahead of this machine's, negative if it is behind, by the last look: exact to half of the time
    /// that the look took. `None` before the first answer.
    pub clock_offset: Option<f64>,
    /// The API pool.
    pub api: Stats,
    /// The backend pool.
    pub backend: Stats,
    /// The bus.
    pub bus: BusState,
    /// How the database stands against the migrations that it was opened with, looked up every minute; `None` before the first look, after one
    /// that failed, and without migrations.
    pub migrations: Option<Summary>,
    /// The encryption keys; `None` without keys.
    pub sealing: Option<SealingHealth>,
    /// Redis; `None` without one. It does not count for being ready.
    pub redis: Option<RedisHealth>,
}

/// What the last look at the database, or at Redis, has found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DatabaseHealth {
    /// It was not asked yet: it was opened just now, or [lazily](crate::Options::lazy) and not used since.
    NotAsked,
    /// It answered.
    Answers {
        /// How long the answer took, and, if there was none, the connection.
        within: Duration,
    },
    /// It did not answer.
    Fails {
        /// The reason, without secrets.
        reason: String,
    },
}

impl Health {
    /// Whether requests can be served.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.not_ready.is_none()
    }

    pub(crate) fn read(db: &Db) -> Self {
        let not_ready =
            if db.closing().is_cancelled() { Some(NotReady::Closing) } else { db.pulse().not_ready() };
        Self {
            not_ready,
            database: db.pulse().database(),
            clock_offset: db.pulse().clock_offset(),
            api: db.pools().api.stats(),
            backend: db.pools().backend.stats(),
            bus: db.bus().state(),
            migrations: db.pulse().migrations(),
            sealing: db.holding().map(crate::holding::Holding::health),
            redis: db.redis_health(),
        }
    }
}
