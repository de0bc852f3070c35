//! What a pool is for, and how large it may grow.

use std::time::Duration;

use super::core::EXTRA;
use crate::Tracking;
use crate::keepalive::milliseconds;

/// The server ends a transaction that idles for so much longer than we let it be open.
const GRACE: Duration = Duration::from_secs(10);

/// What a pool is for, and how large it may grow.
///
/// [`PoolOptions::api`] and [`PoolOptions::backend`] are the two that a service has: background work then cannot take
/// the connections that web requests need. Further pools begin with [`PoolOptions::named`].
///
/// ```
/// use db_core::PoolOptions;
///
/// let gc = PoolOptions { max: 2, ..PoolOptions::named("gc") };
/// assert_eq!(gc.name, "gc");
/// ```
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Its name in errors, logs and `pg_stat_activity`.
    pub name: String,
    /// The most connections that are in use or idle. Zero counts as 1. A statement that was cut off may add a few for a
    /// moment: see [`Pool::max_sessions`](crate::Pool::max_sessions).
    pub max: u32,
    /// The most connections that stay open when nobody uses them; more are closed as they come back. `None` is `max`.
    pub max_idle: Option<u32>,
    /// So many idle connections are kept ready, none unless asked for: as many are opened ahead of any request, and none of them is
    /// closed for having idled.
    pub min_idle: u32,
    /// So many callers may wait for others to give a connection back. Who would be one more is turned away at once, with an
    /// error that knows [when to come again](crate::Error::retry_after), instead of waiting in vain. `None`, the default,
    /// lets everybody wait for [`acquire_timeout`](Self::acquire_timeout). Callers for whom a connection is being made, or
    /// may be, are not counted.
    ///
    /// A good limit is the number of callers that the pool serves in the time that is worth waiting: with 10 connections held
    /// for 20 ms each and half a second of patience, 250.
    pub max_waiting: Option<u32>,
    /// How long a caller waits for a connection: queueing, dialling and the sign of life together.
    pub acquire_timeout: Duration,
    /// A connection that was not used for this long is closed.
    pub idle_timeout: Duration,
    /// A connection is closed when it is this old and idle [30 min], up to a tenth earlier by chance, so that those
    /// opened together do not close together.
    pub max_lifetime: Duration,
    /// A connection is closed after so many uses. `None`, the default, sets no limit.
    pub max_uses: Option<u64>,
    /// A connection that was idle for longer than this [1 s] is asked for a sign of life before it is handed out, and
    /// replaced when it gives none within 0.3 s.
    pub ping_after: Duration,
    /// An idle connection is asked for a sign of life each time this long has passed without one [15 s], so that no
    /// firewall forgets it and a dead one is found before somebody needs it. The server is told to do the same with its
    /// end of the link.
    pub keepalive: Duration,
    /// What happens to a connection that does not come back as it was handed out.
    pub reset: Reset,
    /// How long a statement may wait for the server's next row, or for its end. When it passes, the statement fails and
    /// is cancelled on the server.
    pub statement_timeout: Duration,
    /// How long a transaction may be open. When it passes, its statements fail, [`Handle::tx`](crate::Handle::tx) drops
    /// its closure, and it is rolled back. A transaction may have a [limit of its own](crate::TxOptions::timeout). Ten
    /// seconds later, the server ends the session of one that idles all the same.
    pub tx_timeout: Duration,
    /// A statement that takes longer than this [1 s] is logged at `warn` instead of `debug`.
    pub slow_statement: Duration,
    /// What is remembered of those who hold connections.
    pub tracker: Tracking,
    /// A connection that is held for longer than this is logged and counted as leaked. A
    /// [handle](crate::Handle::leak_after) may say otherwise for one use.
    pub leak_after: Duration,
    /// So many of `max` are set aside, 2 unless told otherwise, for [`Pool::sqlx`](crate::Pool::sqlx) once that was called: one at least, and never
    /// the last one; a pool of 1 has one more then.
    pub sqlx_reserve: u32,
}

/// What happens to a connection that does not come back as it was handed out.
///
/// Whatever is chosen, an open transaction never reaches the next user, and what was begun by
/// [`begin`](crate::Handle::begin) or [`tx`](crate::Handle::tx) and not committed there is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Reset {
    /// Roll back a transaction that was begun by text, and `DISCARD ALL` after what may have changed the session.
    #[default]
    Rollback,
    /// The same, but commit what was begun by text, unless a statement failed in it or was cut off.
    Commit,
    /// Roll back, and leave the session's settings and temporary tables to the next user. Not what it listens to: a notification
    /// would fail the next statement, and nobody could receive it.
    Keep,
    /// `DISCARD ALL` each time, for code that changes its session in ways that its text does not show, such as a function
    /// that calls `set_config`. It costs each use two round trips, after the use.
    DiscardAll,
}

impl PoolOptions {
    /// For web requests: 10 connections, 5 s of waiting, 30 s for a statement, 60 s for a transaction, idle for 30 s at
    /// most; held for longer than 60 s is a leak.
    #[must_use]
    pub fn api() -> Self {
        Self {
            name: "api".to_owned(),
            max: 10,
            max_idle: None,
            min_idle: 0,
            max_waiting: None,
            acquire_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_mins(30),
            max_uses: None,
            ping_after: Duration::from_secs(1),
            keepalive: Duration::from_secs(15),
            reset: Reset::default(),
            statement_timeout: Duration::from_secs(30),
            tx_timeout: Duration::from_mins(1),
            slow_statement: Duration::from_secs(1),
            tracker: Tracking::default(),
            leak_after: Duration::from_mins(1),
            sqlx_reserve: 2,
        }
    }

    /// For background work: 50 connections, 30 s of waiting, 10 min for a statement, 30 min for a transaction, idle for
    /// 10 min at most; held for longer than 30 min is a leak.
    #[must_use]
    pub fn backend() -> Self {
        Self {
            name: "backend".to_owned(),
            max: 50,
            acquire_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(10),
            statement_timeout: Duration::from_mins(10),
            tx_timeout: Duration::from_mins(30),
            leak_after: Duration::from_mins(30),
            ..Self::api()
        }
    }

    /// For work of another kind, such as `gc`: the backend's limits under a name of its own.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::backend() }
    }

    /// So many connections keep a server busy: twice its cores plus its disks. A starting point for the `max` of all pools of all
    /// instances **together**, as far as their connections work at the same time. With more, statements wait at the server
    /// instead of in a pool's queue, where they are counted and can be refused, and get in each other's way there.
    ///
    /// Cores are the server's, without hyperthreads. A disk that all active data is cached of counts as none, an SSD as a few.
    /// From the PostgreSQL wiki, [Number Of Database Connections]. Measure, and go on from there.
    ///
    /// ```
    /// use db_core::PoolOptions;
    ///
    /// // Four cores and a disk, two instances: four each to begin with.
    /// let busy = PoolOptions::busy_connections(4, 1);
    /// assert_eq!((busy, busy / 2), (9, 4));
    /// ```
    ///
    /// [Number Of Database Connections]: https://wiki.postgresql.org/wiki/Number_Of_Database_Connections
    #[must_use]
    pub const fn busy_connections(cores: u32, disks: u32) -> u32 {
        cores.saturating_mul(2).saturating_add(disks)
    }

    /// The most sessions that a pool with these options can have on the server: see
    /// [`Pool::max_sessions`](crate::Pool::max_sessions). One more for a `max` of 1 once
    /// [`Pool::sqlx`](crate::Pool::sqlx) was called.
    #[must_use]
    pub fn max_sessions(&self) -> u32 {
        self.max.max(1).saturating_add(EXTRA + 1)
    }

    /// How long the server lets a transaction idle, in its own unit.
    pub(crate) fn idle_in_transaction(&self) -> (&'static str, String) {
        ("idle_in_transaction_session_timeout", milliseconds(self.tx_timeout.saturating_add(GRACE)))
    }

    /// What the server is told with each `BEGIN` of a transaction that may take so long, where a session cannot be told when it
    /// begins, nor a statement be cancelled.
    pub(crate) fn for_each_transaction(&self, limit: Duration) -> [(&'static str, String); 2] {
        [("statement_timeout", milliseconds(self.statement_timeout.min(limit))), self.idle_in_transaction()]
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max: self.max,
            max_idle: self.max_idle,
            min_idle: self.min_idle,
            max_waiting: self.max_waiting,
        }
    }
}

/// The limits of a pool that may be changed while it runs, with [`Pool::set_limits`](crate::Pool::set_limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`PoolOptions::max`].
    pub max: u32,
    /// See [`PoolOptions::max_idle`].
    pub max_idle: Option<u32>,
    /// See [`PoolOptions::min_idle`].
    pub min_idle: u32,
    /// See [`PoolOptions::max_waiting`]. Those who wait already are not sent away by a lower limit.
    pub max_waiting: Option<u32>,
}
