//! Connection pools.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool, SqlStr};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use crate::call_site::CallSite;
use crate::observer::Retried;
use crate::pool_options::{Limits, PoolOptions};
use crate::stats::Stats;
use crate::tracker::{Caller, Holder};
use crate::{AcquireError, Config, Conn, Error, ErrorType, Handle, Observer};

mod acquire;
mod cancel;
mod closing;
mod dial;
mod driver;
mod handoff;
mod keeper;
mod live;
mod quarantine;
mod repair;
mod sessions;
mod state;
mod warm;

pub use closing::Closed;
pub use warm::WarmUpError;

pub(crate) use acquire::{acquire, try_acquire};
pub(crate) use driver::Driver;
pub(crate) use live::{CheckedOut, Live};
pub(crate) use state::Lane;

pub(crate) use repair::{CANCEL_AFTER, MAX_ABANDONED, drain, forget_statements, is_in_transaction, status};

/// A connection that does not answer a ping within this time is replaced.
const PING_LIMIT: Duration = Duration::from_millis(300);

/// Longer durations are cut to this: the clock's range is smaller than that of `Duration`.
const NEVER: Duration = Duration::from_hours(100 * 365 * 24);

/// A pool of connections to one database. Cheap to clone; clones are the same pool. The pool ends when the last of its clones, its
/// handles and its checkouts is dropped.
///
/// `&Pool` is a sqlx executor that takes a connection for one statement. It has no call site to show in
/// [holders](Pool::holders), errors and the log; a [handle](Pool::handle) has one.
///
/// Idle connections are a stack: the most recently returned connection is taken first, so that few are kept busy and the rest may
/// close. Callers that find no idle connection wait in one queue, first come, first served but for [urgent](Handle::urgent) and
/// [patient](Handle::patient) ones, and a returned connection goes to the first of them. Returning a connection costs no round trip.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Shared>,
}

/// What the pool's clones, its handles and its checkouts share. The keeper and the dials hold the driver only; they end when the last
/// `Shared` is dropped.
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
    /// Creates a pool that opens connections for the first callers, or at once for
    /// [`min_idle`](PoolOptions::min_idle). Must be called inside a tokio runtime, which must live as long as the pool.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(config: &Config, options: PoolOptions) -> Self {
        Self::start(Driver::new(config.clone(), config.apply_to(options)))
    }

    /// Creates a pool that opens no connection before the first caller, not even for [`min_idle`](PoolOptions::min_idle). Must be
    /// called inside a tokio runtime, which must live as long as the pool.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn lazy(config: &Config, options: PoolOptions) -> Self {
        let driver = Driver::new(config.clone(), config.apply_to(options));
        // Before the keeper starts, since the keeper dials for `min_idle`.
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

    /// A handle that remembers its call site. Queries run on handles.
    #[must_use]
    #[track_caller]
    pub fn handle(&self) -> Handle {
        Handle::new(self.clone(), Caller::new(CallSite::caller(), self.options()))
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.options.name
    }

    /// The database that the pool connects to.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The pool's connections and callers now, and its totals.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.core().stats()
    }

    /// The current checkouts, the oldest first. Empty with [`Tracking::Off`](crate::Tracking::Off).
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        let now = Instant::now();
        let sessions = self.inner.sessions.all();
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

    /// Changes the limits of the running pool. A higher limit takes effect at once; connections above a lower limit are closed when
    /// they become idle.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.set_limits(limits);
    }

    /// The most sessions that the pool can have on the server: its [limit](Limits::max), four more while abandoned statements take long
    /// to repair, and one that cancels statements, which is opened with the pool's first connection and kept. The server does not
    /// confirm the end of a session, so a closed session may stay visible for a moment.
    #[must_use]
    pub fn max_sessions(&self) -> u32 {
        self.inner.max_sessions()
    }

    /// A pool of sqlx's own, for code that needs a `PgPool`. It opens at most [`sqlx_reserve`](PoolOptions::sqlx_reserve) connections.
    /// The first call deducts them from our limit, so that neither pool can block the other. The `PgPool` follows sqlx's rules:
    /// its statements are not logged, limited or cancelled by this pool.
    #[must_use]
    pub fn sqlx(&self) -> &PgPool {
        let pool = self.inner.sqlx.get_or_init(|| {
            let reserved = self.inner.reserve();
            sqlx_pool(&self.inner, reserved)
        });
        // The pool is stored by now, so a later `close` finds it.
        if self.inner.core().state.is_closing() {
            // The call itself refuses new requests; the future need not be polled.
            drop(pool.close());
        }
        pool
    }

    /// Adds an observer, which hears from now on what happens in the pool. It stays for as long as the pool.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner.observers.add(observer);
    }

    /// How often [`Handle::tx_retry`] has repeated a transaction, by the error that was the reason.
    #[must_use]
    pub fn retries(&self) -> Vec<(ErrorType, u64)> {
        self.inner.core().retries.clone()
    }

    /// Attaches a value that belongs to the same database, such as its bus or its encryption keys: handles and transactions of the pool reach
    /// it by [`attached`](Self::attached). There is one value of each type; another replaces it.
    pub fn attach<T: std::any::Any + Send + Sync>(&self, value: Arc<T>) {
        self.inner.extensions.put(value);
    }

    /// The value of this type that was [attached](Self::attach), or its default, which is attached then.
    #[must_use]
    pub fn attached_or_default<T: std::any::Any + Send + Sync + Default>(&self) -> Arc<T> {
        self.inner.extensions.get().unwrap_or_else(|| self.inner.extensions.get_or_default())
    }

    /// The value of this type that was [attached](Self::attach), if there is one.
    #[must_use]
    pub fn attached<T: std::any::Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.inner.extensions.get()
    }

    /// Closes the pool within `deadline`. New and waiting callers are refused, and running work may finish. In the last quarter of the
    /// time, at most its last second, statements that still run are cancelled; in the last half of that, remaining sessions are ended.
    /// Returns what was aborted.
    ///
    /// Dropping the future leaves the pool closed to new callers; connections close when they are returned. May be called again with a
    /// longer deadline.
    pub async fn close(&self, deadline: Duration) -> Closed {
        closing::close(&self.inner, deadline).await
    }

    /// Replaces all connections without disturbing work: idle ones are closed at once, those in use when they are returned, and new ones
    /// are dialled for `min_idle` and for callers. Use it after a change that sessions see only at login: a role's new settings, a moved
    /// address, a server that is about to be replaced. The connections of [`Pool::sqlx`] are not replaced.
    pub fn evict(&self) {
        self.inner.evict();
    }

    pub(crate) fn retried(&self, retried: &Retried) {
        self.inner.retried(retried);
    }

    pub(crate) fn options(&self) -> &PoolOptions {
        &self.inner.options
    }

    pub(crate) fn admit(&self, caller: Caller) -> Result<(), AcquireError> {
        acquire::admit(&self.inner, caller)
    }

    pub(crate) fn try_acquire(&self, caller: Caller) -> impl Future<Output = Option<Conn>> + Send + use<> {
        try_acquire(Arc::clone(&self.inner), caller)
    }

    pub(crate) fn acquire(
        &self,
        caller: Caller,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send + use<> {
        acquire(Arc::clone(&self.inner), caller, None)
    }

    /// Takes a connection for one statement, which is sent at once, and without a second reference to the pool.
    pub(crate) fn acquire_for(
        self,
        caller: Caller,
        statement: &SqlStr,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send {
        acquire(self.inner, caller, Some(statement))
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
