//! What a pool is for, and how large it may grow.

use std::time::Duration;

use super::state::EXTRA;
use crate::Tracking;
use crate::keepalive::milliseconds;

/// The server ends the session of a transaction that idles for this much longer than `tx_timeout`.
const GRACE: Duration = Duration::from_secs(10);

/// What a pool is for, and how large it may grow.
///
/// A service has two pools, [`PoolOptions::api`] and [`PoolOptions::backend`], so that background work cannot take the connections
/// that web requests need. Further pools begin with [`PoolOptions::named`].
///
/// ```
/// use db_core::PoolOptions;
///
/// let gc = PoolOptions { max: 2, ..PoolOptions::named("gc") };
/// assert_eq!(gc.name, "gc");
/// ```
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// The pool's name in errors, logs and `pg_stat_activity`.
    pub name: String,
    /// The most connections in use or idle. Zero counts as 1. Cut-off statements may add up to four for a moment: see [`Pool::max_sessions`](crate::Pool::max_sessions).
    pub max: u32,
    /// The most connections that stay open while idle; further ones are closed as they come back. `None` is `max`.
    pub max_idle: Option<u32>,
    /// Idle connections to keep open (default 0): dialled ahead of demand, and exempt from `idle_timeout`.
    pub min_idle: u32,
    /// The most callers that may wait for others to give a connection back. A further caller is refused at once, with an error that
    /// says [when to try again](crate::Error::retry_after). `None`, the default, lets each caller wait for
    /// [`acquire_timeout`](Self::acquire_timeout). Callers for whom a connection is being made, or may be, are not counted.
    ///
    /// A good limit is the number of callers that the pool serves in the longest acceptable wait: 250 for 10 connections that are held
    /// for 20 ms each, and a wait of half a second.
    pub max_waiting: Option<u32>,
    /// How long a caller waits for a connection: queueing, dialling and the ping together.
    pub acquire_timeout: Duration,
    /// A connection that was not used for this long is closed.
    pub idle_timeout: Duration,
    /// A connection is closed when it is this old and idle [30 min], up to a tenth earlier by chance, so that those
    /// opened together do not close together.
    pub max_lifetime: Duration,
    /// A connection is closed after this number of uses. `None`, the default, sets no limit.
    pub max_uses: Option<u64>,
    /// A connection that was idle for longer than this [1 s] is pinged before it is handed out, and replaced when there is no answer
    /// within 0.3 s.
    pub ping_after: Duration,
    /// An idle connection is pinged each time it was silent for this long [15 s], so that no firewall forgets it, and a dead one is
    /// found before it is needed. The server probes its end of the link as often.
    pub keepalive: Duration,
    /// What happens to a connection that does not come back as it was handed out.
    pub reset: Reset,
    /// How long a statement may wait for the server's next row, or for its end. After this time, the statement fails and is
    /// cancelled on the server.
    pub statement_timeout: Duration,
    /// How long a transaction may be open. After this time, its statements fail, [`Handle::tx`](crate::Handle::tx) drops its closure,
    /// and the transaction is rolled back. A transaction may have a [limit of its own](crate::TxOptions::timeout). Ten seconds later,
    /// the server ends the session if the transaction still idles.
    pub tx_timeout: Duration,
    /// A statement that takes longer than this [1 s] is logged at `warn` instead of `debug`.
    pub slow_statement: Duration,
    /// What is remembered about loans.
    pub tracker: Tracking,
    /// A connection that is held for longer than this is logged and counted as leaked. A
    /// [handle](crate::Handle::leak_after) may have a limit of its own.
    pub leak_after: Duration,
    /// Connections of `max` that are reserved for [`Pool::sqlx`](crate::Pool::sqlx) once it is first called (default 2): at least 1, at most
    /// `max - 1`. A pool of 1 has one more connection then.
    pub sqlx_reserve: u32,
}

/// What happens to a connection that does not come back as it was handed out.
///
/// An open transaction never reaches the next user, and a transaction that was begun by [`begin`](crate::Handle::begin) or
/// [`tx`](crate::Handle::tx) and not committed is rolled back, whatever is chosen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Reset {
    /// Roll back a transaction that was begun by text, and `DISCARD ALL` if a statement may have changed the session.
    #[default]
    Rollback,
    /// The same, but commit a transaction that was begun by text, unless a statement failed in it or was cut off.
    Commit,
    /// Roll back, and leave the session's settings and temporary tables to the next user. `UNLISTEN *` is sent all the same: a
    /// notification would fail the next statement, and no caller could receive it.
    Keep,
    /// `DISCARD ALL` after each use, for code that changes its session in ways that its text does not show, such as a function that
    /// calls `set_config`. This costs two round trips after each use.
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

    /// The number of connections that keeps a server busy: twice its cores plus its disks. A starting point for the `max` of all pools
    /// of all instances **together**, as far as their connections work at the same time. With more connections, statements wait at
    /// the server, where they slow each other down, instead of in a pool's queue, where they are counted and can be refused.
    ///
    /// Count the server's cores without hyperthreads. A disk whose active data is all in memory counts as 0, an SSD as a few. From the
    /// PostgreSQL wiki, [Number Of Database Connections]. Measure, and adjust from there.
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
    /// [`Pool::max_sessions`](crate::Pool::max_sessions). With a `max` of 1, there is one more once
    /// [`Pool::sqlx`](crate::Pool::sqlx) was called.
    #[must_use]
    pub fn max_sessions(&self) -> u32 {
        self.max.max(1).saturating_add(EXTRA + 1)
    }

    /// The setting that limits how long the server lets a transaction idle.
    pub(crate) fn idle_in_transaction(&self) -> (&'static str, String) {
        ("idle_in_transaction_session_timeout", milliseconds(self.tx_timeout.saturating_add(GRACE)))
    }

    /// The settings that go with each `BEGIN` of a transaction with this limit, where a pooler is in between: settings cannot be given
    /// when a session begins, and statements cannot be cancelled.
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
    /// See [`PoolOptions::max_waiting`]. Callers that wait already are not refused by a lower limit.
    pub max_waiting: Option<u32>,
}
