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
mod core;
mod dial;
mod idle;
mod keeper;
mod options;
mod repair;
mod stats;
mod warm;

pub use closing::Closed;
pub use options::{Limits, PoolOptions, Reset};
pub use stats::{Stats, Totals};
pub use warm::WarmUpError;

pub(crate) use self::core::{Inner, Live};
pub(crate) use acquire::acquire;
pub(crate) use cancel::{Cancel, Cancels};
pub(crate) use repair::{CUT_OFF, LET_IT_END, Rest, ask, come_to_rest, forget_statements, is_in_transaction};

/// How long the sign of life may take before the connection is replaced.
const PING_LIMIT: Duration = Duration::from_millis(300);

/// Longer times than this one are all the same, and clocks do not reach as far as `Duration` does.
const NEVER: Duration = Duration::from_hours(100 * 365 * 24);

/// A pool of connections to one database. Cheap to clone; clones are the same pool. It ends with the last of them, of its
/// handles, and of the connections on loan.
///
/// `&Pool` is a sqlx executor that takes a connection for one statement, without a line of the program to name in
/// [holders](Pool::holders), errors and the log: a [handle](Pool::handle) has one.
///
/// The connections are the pool's own. Those that are idle lie on a stack: the one given back last is taken first, so that
/// few are kept busy and the rest may close. Callers who find none wait in one line, first come, first served, and a
/// connection that comes back goes to the first of them. Giving back costs no round trip.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Shared>,
}

/// A pool as those have it who use it: its clones, its handles, and the connections on loan. With the last of them, the
/// keeper and the dials end, which hold on to what is inside themselves.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Arc<Inner>,
    _alive: DropGuard,
}

impl Deref for Shared {
    type Target = Arc<Inner>;

    fn deref(&self) -> &Arc<Inner> {
        &self.inner
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
        Self::start(Inner::new(config.clone(), config.apply_to(options)))
    }

    /// The same, but nothing is opened before the first connection is asked for, not even for
    /// [`min_idle`](PoolOptions::min_idle).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn lazy(config: &Config, options: PoolOptions) -> Self {
        let inner = Inner::new(config.clone(), config.apply_to(options));
        // Before the keeper is there, who would open them.
        inner.core().asleep = true;
        Self::start(inner)
    }

    fn start(inner: Inner) -> Self {
        let pace = keeper::pace(&inner.options);
        let inner = Arc::new(inner);
        inner.runtime.spawn(keeper::keep(Arc::downgrade(&inner), inner.ended.clone(), pace));
        let alive = inner.ended.clone().drop_guard();
        Self { inner: Arc::new(Shared { inner, _alive: alive }) }
    }

    /// A handle that remembers the line it was made on. This is what queries are run on.
    #[must_use]
    #[track_caller]
    pub fn handle(&self) -> Handle {
        let asker = Asker { at: CallSite::caller(), leak_after: self.leak_after() };
        Handle::new(self.clone(), asker)
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.options.name
    }

    /// How the pool stands now, and what it has been through.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.core().stats()
    }

    /// Who holds connections now, the oldest loan first. Empty with [`Tracking::Off`](crate::Tracking::Off).
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        let now = Instant::now();
        let sessions: Vec<_> = self.inner.core().sessions().collect();
        let mut holders: Vec<_> = sessions.iter().filter_map(|session| session.holder(now)).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// Takes a connection and asks for a sign of life. Says how long that took, the wait for a connection included.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`]; [`Error::Deadline`] when there is no answer within the pool's
    /// [`statement_timeout`](PoolOptions::statement_timeout); [`Error::Statement`] when the link is lost.
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
        self.inner.core().limits
    }

    /// Changes the limits of the running pool. More callers are let in at once; connections above a lower limit are
    /// closed as they become idle.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.core().limits = limits;
        self.inner.trim();
        self.inner.dial_if_wanted();
    }

    /// The most sessions that the pool can have on the server: its [limit](Limits::max), four for connections whose
    /// statement was cut off and which take long to come to rest, and one that cancels statements, which is opened with the pool's
    /// first connection and kept. The server does not answer a
    /// goodbye: one that was closed may be seen for a moment longer.
    #[must_use]
    pub fn max_sessions(&self) -> u32 {
        self.inner.max_sessions()
    }

    /// A pool of sqlx's own, for code that insists on it. It opens
    /// [`sqlx_reserve`](PoolOptions::sqlx_reserve) connections at most, which are set aside from our limit by the first
    /// call, so that neither can keep the other waiting. What is done there is not watched: sqlx's rules hold, not ours.
    #[must_use]
    pub fn sqlx(&self) -> &PgPool {
        let pool = self.inner.sqlx.get_or_init(|| {
            let reserve = self.inner.reserve();
            self.inner.trim();
            sqlx_pool(&self.inner, reserve)
        });
        // Once it is in its place: whoever closes the pool later finds it there.
        if self.inner.core().closing {
            // The call itself closes it to requests.
            drop(pool.close());
        }
        pool
    }

    /// Attaches something that belongs to the same database, such as its bus or its keyring: handles and transactions of the
    /// pool reach it as [`attached`](Self::attached). One value of each type; another replaces it.
    pub fn attach<T: std::any::Any + Send + Sync>(&self, value: Arc<T>) {
        self.inner.companions.put(value);
    }

    /// What was [attached](Self::attach), if it was.
    #[must_use]
    pub fn attached<T: std::any::Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.inner.companions.get()
    }

    /// Closes the pool within `deadline`: takes no more requests, and refuses those that wait; lets work finish; cancels
    /// the statements that are left when a quarter of the time is left, but one second at most; ends the sessions that
    /// are left when half of that is. Says what had to be cut.
    ///
    /// Dropping the future leaves the pool closed to new requests; connections close as they are given back. May be
    /// called again, to wait for longer.
    pub async fn close(&self, deadline: Duration) -> Closed {
        closing::close(&self.inner, deadline).await
    }

    pub(crate) fn leak_after(&self) -> Duration {
        self.inner.options.leak_after
    }

    pub(crate) fn acquire(
        &self,
        asker: Asker,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send + use<> {
        acquire(Arc::clone(&self.inner), asker, None)
    }

    /// The same for one statement, which is to be sent at once, and without a second reference to the pool.
    pub(crate) fn acquire_for(
        self,
        asker: Asker,
        statement: &SqlStr,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send {
        acquire(self.inner, asker, Some(statement))
    }
}

fn sqlx_pool(inner: &Inner, max: u32) -> PgPool {
    let options = &inner.options;
    let ping_after = options.ping_after;
    PgPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(options.acquire_timeout.min(NEVER))
        .idle_timeout(options.idle_timeout.min(NEVER))
        .max_lifetime(options.max_lifetime.min(NEVER))
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
        .connect_lazy_with(
            inner.config.clone().with_application_name(&format!("{} sqlx", options.name)).as_sqlx(),
        )
}
