//! Pools, by the work they are for.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool};
use tokio::time::timeout;

use crate::error::{AcquireCause, said};
use crate::{AcquireError, Config, Conn, Handle};

/// How long the sign of life may take before the connection is replaced.
const PING_LIMIT: Duration = Duration::from_millis(300);

/// What a pool is for, and how large it may grow.
///
/// [`PoolOptions::api`] and [`PoolOptions::backend`] are the two that a service has: background work then cannot take
/// the connections that web requests need.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Its name in errors, logs and `pg_stat_activity`.
    pub name: String,
    /// The most connections it opens.
    pub max: u32,
    /// How long a caller waits for a connection.
    pub acquire_timeout: Duration,
    /// A connection that was not used for this long is closed.
    pub idle_timeout: Duration,
    /// A connection is closed after this long, once it is idle.
    pub max_lifetime: Duration,
    /// A connection that was idle for longer than this [1 s] is asked for a sign of life before it is handed out, and
    /// replaced when it gives none within 0.3 s.
    pub ping_after: Duration,
}

impl PoolOptions {
    /// For web requests: 10 connections, 5 s of waiting, idle for 30 s at most.
    #[must_use]
    pub fn api() -> Self {
        Self {
            name: "api".to_owned(),
            max: 10,
            acquire_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_mins(30),
            ping_after: Duration::from_secs(1),
        }
    }

    /// For background work: 50 connections, 30 s of waiting, idle for 10 min at most.
    #[must_use]
    pub fn backend() -> Self {
        Self {
            name: "backend".to_owned(),
            max: 50,
            acquire_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(10),
            ..Self::api()
        }
    }
}

/// How a pool stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Connections that are open, taken or not.
    pub open: u32,
    /// Connections that are open and not taken.
    pub idle: u32,
    /// The most it opens.
    pub max: u32,
}

/// A pool of connections to one database. Cheap to clone; clones are the same pool.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: PoolOptions,
    config: Config,
    sqlx: PgPool,
}

impl Pool {
    /// Makes a pool that opens its connections when they are first asked for. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(config: &Config, options: PoolOptions) -> Self {
        let ping_after = options.ping_after;
        let sqlx = PgPoolOptions::new()
            .max_connections(options.max)
            .acquire_timeout(options.acquire_timeout)
            .idle_timeout(options.idle_timeout)
            .max_lifetime(options.max_lifetime)
            // sqlx's own test has no limit of time and costs a round trip on each take.
            .test_before_acquire(false)
            .before_acquire(move |conn, metadata| {
                Box::pin(async move {
                    if metadata.idle_for < ping_after {
                        return Ok(true);
                    }
                    match timeout(PING_LIMIT, conn.ping()).await {
                        Ok(Ok(())) => Ok(true),
                        Ok(Err(error)) => Err(error),
                        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
                    }
                })
            })
            .connect_lazy_with(config.clone().with_application_name(&options.name).as_sqlx());
        Self { inner: Arc::new(Inner { options, config: config.clone(), sqlx }) }
    }

    /// A handle that remembers the line it was made on. This is what queries are run on.
    #[must_use]
    #[track_caller]
    pub fn handle(&self) -> Handle {
        Handle::new(self.clone(), Location::caller())
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.options.name
    }

    /// How the pool stands now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            open: self.inner.sqlx.size(),
            idle: u32::try_from(self.inner.sqlx.num_idle()).unwrap_or(u32::MAX),
            max: self.inner.options.max,
        }
    }

    /// sqlx's own pool, for code that insists on it. What it hands out is not watched by us.
    #[must_use]
    pub fn sqlx(&self) -> &PgPool {
        &self.inner.sqlx
    }

    /// Takes no more requests for connections, and waits until all are given back and closed, at most for `deadline`.
    /// Says whether it was in time; connections still taken then close when they are given back.
    ///
    /// Dropping the future leaves the pool closed to new requests.
    pub async fn close(&self, deadline: Duration) -> bool {
        timeout(deadline, self.inner.sqlx.close()).await.is_ok()
    }

    pub(crate) async fn acquire(&self, at: &'static Location<'static>) -> Result<Conn, AcquireError> {
        let started = Instant::now();
        let error = match self.inner.sqlx.acquire().await {
            Ok(raw) => return Ok(Conn::new(raw)),
            Err(error) => error,
        };
        let waited = started.elapsed();
        let stats = self.stats();
        let in_use = stats.open.saturating_sub(stats.idle);
        let cause = match error {
            sqlx::Error::PoolClosed => AcquireCause::Closed,
            // sqlx says no more than "timed out". With a connection to spare, it was the dialling: ask once, and see.
            sqlx::Error::PoolTimedOut if in_use < stats.max => AcquireCause::Dialling(self.diagnose().await),
            sqlx::Error::PoolTimedOut => AcquireCause::Exhausted,
            other => AcquireCause::Dialling(said(&other)),
        };
        Err(AcquireError { pool: self.name().to_owned(), waited, in_use, max: stats.max, at, cause })
    }

    /// What a connection attempt meets right now.
    async fn diagnose(&self) -> String {
        let once = crate::Retry { deadline: Duration::ZERO, attempt: PING_LIMIT, ..crate::Retry::default() };
        match crate::connect::connect(&self.inner.config, once).await {
            Ok(connection) => {
                // The answer is all that was wanted; how the goodbye goes is of no interest to anybody.
                let _: Result<_, _> = timeout(PING_LIMIT, connection.close()).await;
                "the server answers again now".to_owned()
            }
            Err(error) => error.failure().to_string(),
        }
    }
}
