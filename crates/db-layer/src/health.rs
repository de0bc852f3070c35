//! The state of an open database.

use std::time::{Duration, Instant};

use db_core::Pool;
use db_core::Stats;
use db_notify::{Bus, BusState};
use tokio::time::timeout;

use crate::SealingHealth;

/// The state of all parts of a database at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// Whether the database answers, asked through the API pool.
    pub database: DatabaseHealth,
    /// The API pool.
    pub api: Stats,
    /// The backend pool.
    pub backend: Stats,
    /// The bus.
    pub bus: BusState,
    /// The encryption keys; `None` without keys.
    pub sealing: Option<SealingHealth>,
}

/// Whether the database answers.
#[derive(Debug, Clone)]
pub enum DatabaseHealth {
    /// It answered a query.
    Answers {
        /// How long the answer took, including the wait for a connection.
        within: Duration,
    },
    /// It did not answer.
    Fails {
        /// The reason, without secrets.
        reason: String,
    },
}

impl Health {
    /// Whether requests can be served. A bus that reconnects does not count against it: meanwhile streams poll.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.database, DatabaseHealth::Answers { .. })
    }

    pub(crate) async fn read(
        api: &Pool,
        backend: &Pool,
        bus: &Bus,
        sealing: Option<SealingHealth>,
        limit: Duration,
    ) -> Self {
        let started = Instant::now();
        let answer = timeout(limit, sqlx::query("select 1").execute(api.handle())).await;
        let database = match answer {
            Ok(Ok(_)) => DatabaseHealth::Answers { within: started.elapsed() },
            Ok(Err(error)) => DatabaseHealth::Fails { reason: db_core::Error::from(error).to_string() },
            Err(_) => {
                DatabaseHealth::Fails { reason: format!("no answer within {:.1} s", limit.as_secs_f64()) }
            }
        };
        Self { database, api: api.stats(), backend: backend.stats(), bus: bus.state(), sealing }
    }
}
