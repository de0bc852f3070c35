//! Pools, by the work they are for.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool, SqlStr};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use crate::tracker::{Asker, CallSite, Holder};
use crate::{AcquireError, Config, Conn, Error, Handle};

mod acquire;
mod cancel;
mod closing;
mod dial;
mod driver;
mod handoff;
mod keeper;
mod live;
mod options;
mod quarantine;
mod repair;
mod state;
mod stats;
mod warm;

pub use closing::Closed;
pub use options::{Limits, PoolOptions, Reset};
pub use stats::{Stats, Totals};
pub use warm::WarmUpError;

pub(crate) use acquire::{acquire, try_acquire};
pub(crate) use cancel::{Cancel, Cancels};
pub(crate) use driver::Driver;
pub(crate) use live::{CheckedOut, Live};
pub(crate) use repair::{CUT_OFF, LET_IT_END, Rest, ask, come_to_rest, forget_statements, is_in_transaction};

/// A connection that does not answer a ping within this time is replaced.
const PING_LIMIT: Duration = Duration::from_millis(300);

/// Longer durations are cut to this one: clocks do not reach as far as `Duration` does.
const NEVER: Duration = Duration::from_hours(100 * 365 * 24);

/// A pool of connections to one database. Cheap to clone; clones are the same pool. The pool ends when the last of its clones, its
/// handles and its loans is dropped.
///
/// `&Pool` is a sqlx executor that takes a connection for one statement, without a line of the program to name in
/// [holders](Pool::holders), errors and the log: a [handle](Pool::handle) has one.
///
/// Idle connections are a stack: the connection given back last is taken first, so that few are kept busy and the rest may close.
/// Callers that find no idle connection wait in one queue, first come, first served, and a connection that comes back goes to the
/// first of them. Giving back costs no round trip.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Shared>,
}

/// What the pool's clones, its handles and its loans share. When the last of them is dropped, the keeper and the dials end, which hold
/// the driver themselves.
#[derive(Debug)]
pub(crate) struct Shared {
    driver: Arc<Driver>,
    _alive: DropGuard,
}

impl Deref for Shared {
    type Target = Arc<Driver>;

    fn deref(&self) -> &Arc<Driver> {
        &self.driver
    }
}

impl Pool {
    /// Makes a pool that opens its connections when they are first asked for, or at once for
    /// [`min_idle`](PoolOptions::min_idle). Must be called inside a tokio runtime, which must live as long as the pool.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(config: &Config, options: PoolOptions) -> Self {
        Self::start(Driver::new(config.clone(), config.apply_to(options)))
    }

    /// Makes a pool that opens no connection before the first is asked for, not even for [`min_idle`](PoolOptions::min_idle). Must be
    /// called inside a tokio runtime, which must live as long as the pool.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn lazy(config: &Config, options: PoolOptions) -> Self {
        let driver = Driver::new(config.clone(), config.apply_to(options));
        // Before the keeper begins, which would open them.
        driver.core().state.sleep();
        Self::start(driver)
    }

    fn start(driver: Driver) -> Self {
        let pace = keeper::pace(&driver.options);
        let driver = Arc::new(driver);
        driver.runtime.spawn(keeper::keep(Arc::downgrade(&driver), driver.ended.clone(), pace));
        let alive = driver.ended.clone().drop_guard();
        Self { inner: Arc::new(Shared { driver, _alive: alive }) }
    }

    /// A handle that remembers the line it was made on. Queries run on handles.
    #[must_use]
    #[track_caller]
    pub fn handle(&self) -> Handle {
        Handle::new(self.clone(), Asker::new(CallSite::caller(), self.options()))
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.options.name
    }

    /// The pool's connections and callers now, and its totals.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.core().stats()
    }

    /// The holders of connections now, the oldest loan first. Empty with [`Tracking::Off`](crate::Tracking::Off).
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        let now = Instant::now();
        let sessions: Vec<_> = self.inner.core().sessions().collect();
        let mut holders: Vec<_> = sessions.iter().filter_map(|session| session.holder(now)).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// Takes a connection and pings the server. Returns how long both took.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`]; [`Error::Deadline`] if there is no answer within the pool's
    /// [`statement_timeout`](PoolOptions::statement_timeout); [`Error::Statement`] if the link is lost.
    #[track_caller]
    pub fn ping(&self) -> impl Future<Output = Result<Duration, Error>> + Send + 'static {
        let handle = self.handle();
        async move {
            let started = Instant::now();
            handle.acquire().await?.ping().await?;
            Ok(started.elapsed())
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.core().state.limits()
    }

    /// Changes the limits of the running pool. A higher limit takes effect at once; connections above a lower limit are closed as they
    /// become idle.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.set_limits(limits);
    }

    /// The most sessions that the pool can have on the server: its [limit](Limits::max); four for connections whose statement was cut
    /// off, while their repair takes long; and one that cancels statements, which is opened with the pool's first connection and kept.
    /// The server does not confirm the end of a session, so that a closed one may be seen for a moment longer.
    #[must_use]
    pub fn max_sessions(&self) -> u32 {
        self.inner.max_sessions()
    }

    /// A pool of sqlx's own, for code that needs a `PgPool`. It opens at most [`sqlx_reserve`](PoolOptions::sqlx_reserve) connections.
    /// The first call takes them off our limit, so that neither pool can keep the other waiting. The `PgPool` follows sqlx's rules:
    /// its statements are not logged, limited or cancelled by this pool.
    #[must_use]
    pub fn sqlx(&self) -> &PgPool {
        let pool = self.inner.sqlx.get_or_init(|| {
            let reserved = self.inner.reserve();
            sqlx_pool(&self.inner, reserved)
        });
        // After it was stored: a later `close` finds it there.
        if self.inner.core().state.is_closing() {
            // The call refuses new requests, without the future being polled.
            drop(pool.close());
        }
        pool
    }

    /// Attaches a value that belongs to the same database, such as its bus or its keyring: handles and transactions of the pool reach
    /// it by [`attached`](Self::attached). There is one value of each type; another replaces it.
    pub fn attach<T: std::any::Any + Send + Sync>(&self, value: Arc<T>) {
        self.inner.companions.put(value);
    }

    /// The value of this type that was [attached](Self::attach), if there is one.
    #[must_use]
    pub fn attached<T: std::any::Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.inner.companions.get()
    }

    /// Closes the pool within `deadline`. New and waiting requests are refused, and work may finish. When a quarter of the time is left,
    /// or one second if that is less, the statements that still run are cancelled; when half of that is left, the remaining sessions
    /// are ended. Returns what had to be cut off.
    ///
    /// Dropping the future leaves the pool closed to new requests; connections close as they are given back. May be called again, to
    /// wait for longer.
    pub async fn close(&self, deadline: Duration) -> Closed {
        closing::close(&self.inner, deadline).await
    }

    /// Replaces all connections, gently: those that are idle are closed at once, those in use as they come back, and new ones are
    /// dialled for `min_idle` and as callers need them. For what a session learns only when it begins: a role's new settings, an
    /// address that leads elsewhere now, a server that is about to be replaced. Not the connections of [`Pool::sqlx`].
    pub fn evict(&self) {
        self.inner.evict();
    }

    pub(crate) fn options(&self) -> &PoolOptions {
        &self.inner.options
    }

    pub(crate) fn try_acquire(&self, asker: Asker) -> impl Future<Output = Option<Conn>> + Send + use<> {
        try_acquire(Arc::clone(&self.inner), asker)
    }

    pub(crate) fn acquire(
        &self,
        asker: Asker,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send + use<> {
        acquire(Arc::clone(&self.inner), asker, None)
    }

    /// Takes a connection for one statement, which is sent at once, and without a second reference to the pool.
    pub(crate) fn acquire_for(
        self,
        asker: Asker,
        statement: &SqlStr,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send {
        acquire(self.inner, asker, Some(statement))
    }
}

fn sqlx_pool(driver: &Driver, max: u32) -> PgPool {
    let options = &driver.options;
    let ping_after = options.ping_after;
    PgPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(options.acquire_timeout.min(NEVER))
        .idle_timeout(options.idle_timeout.min(NEVER))
        .max_lifetime(options.max_lifetime.min(NEVER))
        // sqlx's own test has no time limit and costs a round trip on each take.
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
        .connect_lazy_with(
            driver.config.clone().with_application_name(&format!("{} sqlx", options.name)).as_sqlx(),
        )
}
