//! The options of a pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use derive_setters::Setters;
use futures_util::future::BoxFuture;
use sqlx::postgres::PgConnection;

use crate::Observer;
use crate::keepalive::milliseconds;

/// Up to this many connections in slow repair do not count against the limit, so that many abandoned statements at once leave room for
/// callers, and cannot pile up server processes.
pub(crate) const EXTRA: u32 = 4;

/// The server ends the session of a transaction that idles for this much longer than `tx_timeout`.
const GRACE: Duration = Duration::from_secs(10);

/// The purpose and limits of a pool.
///
/// A service has two pools, [`PoolOptions::api`] and [`PoolOptions::backend`], so that background work cannot take the connections
/// that web requests need. Make further pools with [`PoolOptions::named`]. Each option has a setter of its name.
///
/// ```
/// use db_core::PoolOptions;
///
/// let gc = PoolOptions::named("gc").max(2).set("search_path", "app, public");
/// assert_eq!(gc.name, "gc");
/// ```
#[derive(Debug, Clone, Setters)]
#[non_exhaustive]
pub struct PoolOptions {
    /// The pool's name in errors, logs and `pg_stat_activity`.
    #[setters(into)]
    pub name: String,
    /// The most connections in use or idle. Zero counts as 1. Slow repairs of abandoned statements may add up to four for a moment:
    /// see [`Pool::max_sessions`](crate::Pool::max_sessions).
    pub max: u32,
    /// The most connections that stay open while idle; others are closed when they are returned. `None` means `max`.
    pub max_idle: Option<u32>,
    /// Idle connections to keep open (default 0): dialled ahead of demand, and exempt from `idle_timeout`.
    pub min_idle: u32,
    /// The most callers that may wait for a returned connection. A further caller is rejected immediately, with an error that
    /// says [when to try again](crate::Error::retry_after). `None`, the default, lets each caller wait for
    /// [`acquire_timeout`](Self::acquire_timeout). Callers for whom a connection is or may be dialled do not count.
    ///
    /// A good limit is the number of callers that the pool serves in the longest acceptable wait: 250 for 10 connections that are held
    /// for 20 ms each, and a wait of half a second.
    pub max_waiting: Option<u32>,
    /// The wait for a connection that is good enough. When everybody who got one had waited for longer during a whole
    /// [`queue_interval`](Self::queue_interval), callers that have waited for twice the target are rejected, [patient](crate::Handle::patient) ones
    /// after the target itself, until somebody waits for less: as many are served as before, but soon enough for clients that still listen.
    /// A short burst rejects nobody. A caller that is served in time before others that came earlier does not count, nor does one for whom
    /// a connection is dialled, and as many as may be dialled for are not rejected. `None`, the default, sets no target.
    ///
    /// A good target is a tenth of the time for which clients wait: 100 ms for a second.
    pub queue_target: Option<Duration>,
    /// How long everybody must have waited for longer than [`queue_target`](Self::queue_target) before callers are rejected (default 2 s).
    pub queue_interval: Duration,
    /// How long a caller waits for a connection: queueing, dialling and the ping together.
    pub acquire_timeout: Duration,
    /// A connection that is not used for this long is closed.
    pub idle_timeout: Duration,
    /// A connection of this age is closed when it is idle (default 30 min). The age is shortened by up to a tenth at random, so that
    /// connections opened together do not close together.
    pub max_lifetime: Duration,
    /// A connection is closed after this number of uses. `None`, the default, sets no limit.
    pub max_uses: Option<u64>,
    /// A connection that was idle for longer than this (default 1 s) is pinged before it is handed out, and replaced if it does not
    /// answer within 0.3 s.
    pub ping_after: Duration,
    /// An idle connection is pinged whenever it was silent for this long (default 15 s), so that firewalls keep its entry, and a dead
    /// connection is found before it is needed. The server probes its end of the link as often.
    pub keepalive: Duration,
    /// What happens to a connection that is returned in another state than it was handed out.
    pub reset: Reset,
    /// How long a statement may wait for the server's next row, or for its end. After this time, the statement fails and is
    /// cancelled on the server.
    pub statement_timeout: Duration,
    /// How long a transaction may be open. After this time, its statements fail, [`Handle::tx`](crate::Handle::tx) drops its closure,
    /// and the transaction is rolled back. A transaction may have a [limit of its own](crate::TxOptions::timeout). Ten seconds later,
    /// the server ends the session if the transaction still idles.
    pub tx_timeout: Duration,
    /// A statement that takes longer than this (default 1 s) is logged at `warn` instead of `debug`.
    pub slow_statement: Duration,
    /// What is recorded about checkouts.
    pub tracker: Tracking,
    /// A connection that is held for longer than this is logged and counted as leaked. A
    /// [handle](crate::Handle::leak_after) may have a limit of its own.
    pub leak_after: Duration,
    /// Connections of `max` that are reserved for [`Pool::sqlx`](crate::Pool::sqlx) once it is first called (default 2): at least 1, at most
    /// `max - 1`. A pool of 1 grows to 2.
    pub sqlx_reserve: u32,
    /// The most prepared statements that a connection keeps (default 100). Each takes memory at the server. A new statement
    /// replaces the least recently used one. Zero counts as 1.
    pub statement_cache: usize,
    #[setters(skip)]
    pub(crate) session: SessionSettings,
    #[setters(skip)]
    pub(crate) after_connect: Option<AfterConnect>,
    #[setters(skip)]
    pub(crate) observers: Vec<Arc<dyn Observer>>,
}

/// The server settings of each session of a pool. `Debug` shows no value.
#[derive(Clone, Default)]
pub(crate) struct SessionSettings(Vec<(String, String)>);

impl SessionSettings {
    /// The settings in the order in which they were first named.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(present, _)| present.eq_ignore_ascii_case(name)) {
            Some((_, present)) => value.clone_into(present),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }
}

impl fmt::Debug for SessionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("None");
        }
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// Sets up a new connection.
type Prepare = dyn for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<(), sqlx::Error>> + Send + Sync;

/// The function for each new connection: see [`PoolOptions::after_connect`].
#[derive(Clone)]
pub(crate) struct AfterConnect(Arc<Prepare>);

impl AfterConnect {
    pub(crate) async fn run(&self, raw: &mut PgConnection) -> Result<(), sqlx::Error> {
        (self.0)(raw).await
    }
}

impl fmt::Debug for AfterConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AfterConnect")
    }
}

/// What a pool records about checkouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Tracking {
    /// Nothing: no [holders](crate::Pool::holders), no leaks.
    Off,
    /// The call site, the start, whether a transaction is open, and the running statement.
    #[default]
    Lines,
    /// The call stack of the acquire, too. Costs some hundred microseconds for each checkout.
    Stacks,
}

/// What happens to a connection that is returned in another state than it was handed out.
///
/// With every variant, an open transaction never reaches the next caller, and a transaction that was begun by
/// [`begin`](crate::Handle::begin) or [`tx`](crate::Handle::tx) and not committed is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Reset {
    /// Roll back a transaction begun with raw SQL, and `DISCARD ALL` if a statement may have changed the session.
    #[default]
    Rollback,
    /// As `Rollback`, but commit a transaction begun with raw SQL, unless a statement in it failed or was abandoned.
    Commit,
    /// Roll back, and leave settings and temporary tables to the next caller. `UNLISTEN *` is sent all the same: a
    /// notification would fail the next statement, and no caller could receive it.
    Keep,
    /// `DISCARD ALL` after each use, for code whose SQL text does not show that it changes the session, such as a function that
    /// calls `set_config`. Costs two round trips after each use.
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
            queue_target: None,
            queue_interval: Duration::from_secs(2),
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
            statement_cache: 100,
            session: SessionSettings::default(),
            after_connect: None,
            observers: Vec::new(),
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

    /// For other work, such as `gc`: the backend's limits with another name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::backend() }
    }

    /// Sets a server setting for each session of the pool, such as `search_path` or `work_mem`. A later value of the same name
    /// replaces the first. `application_name` replaces the pool's [name](Self::name) there.
    ///
    /// The settings are sent with the login, so they cost no round trip, and `RESET` and `DISCARD ALL` return to them.
    /// A pooler in transaction mode shares its sessions between clients: there, the settings are sent with each `BEGIN` and hold for
    /// that transaction, and a statement outside a transaction runs without them.
    ///
    /// A setting that the server does not know, or that the driver or the pool sets itself (`timezone`, `datestyle`), is refused
    /// when the pool dials: see [`ConnectFailure::Refused`](crate::ConnectFailure::Refused).
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.session.set(name, value);
        self
    }

    /// Runs `prepare` on each connection before its first use, and again after each `DISCARD ALL`: for what no setting can do, such
    /// as a temporary table or `LOAD`. For settings, [`Self::set`] costs no round trip.
    ///
    /// The time limit of `prepare` is that of the attempt to connect; after a `DISCARD ALL`, it is that of the repair, 2 s. If
    /// `prepare` fails, the connection is closed, and callers get
    /// [`ConnectFailure::AfterConnect`](crate::ConnectFailure::AfterConnect). Behind a pooler in transaction mode, `after_connect` is
    /// refused: other clients would get the session.
    ///
    /// ```
    /// use db_core::PoolOptions;
    /// use sqlx::Executor;
    ///
    /// let options = PoolOptions::backend().after_connect(|conn| {
    ///     Box::pin(async move {
    ///         conn.execute("create temp table seen (id bigint primary key)").await?;
    ///         Ok(())
    ///     })
    /// });
    /// # drop(options);
    /// ```
    #[must_use]
    pub fn after_connect<F>(mut self, prepare: F) -> Self
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<(), sqlx::Error>> + Send + Sync + 'static,
    {
        self.after_connect = Some(AfterConnect(Arc::new(prepare)));
        self
    }

    /// Adds an observer, which hears from the first dial on what happens in the pool. [`Pool::observe`](crate::Pool::observe) adds one to a
    /// pool that runs.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
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

    /// The setting that limits how long the server keeps a transaction that idles.
    pub(crate) fn idle_in_transaction(&self) -> (&'static str, String) {
        ("idle_in_transaction_session_timeout", milliseconds(self.tx_timeout.saturating_add(GRACE)))
    }

    /// The settings to send with each `BEGIN` of a transaction with this limit behind a pooler, where settings cannot be given at
    /// login, and statements cannot be cancelled.
    pub(crate) fn for_each_transaction(&self, limit: Duration) -> Vec<(&str, String)> {
        let limits = [
            ("statement_timeout", milliseconds(self.statement_timeout.min(limit))),
            self.idle_in_transaction(),
        ];
        // The driver sends `application_name` at login, and the pooler passes it on.
        let settings = self.session.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("application_name"));
        limits.into_iter().chain(settings.map(|(name, value)| (name, value.to_owned()))).collect()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max: self.max,
            max_idle: self.max_idle,
            min_idle: self.min_idle,
            max_waiting: self.max_waiting,
            queue_target: self.queue_target,
            queue_interval: self.queue_interval,
        }
    }
}

/// The limits of a pool that [`Pool::set_limits`](crate::Pool::set_limits) can change while the pool runs. Start from the
/// [current ones](crate::Pool::limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct Limits {
    /// See [`PoolOptions::max`].
    pub max: u32,
    /// See [`PoolOptions::max_idle`].
    pub max_idle: Option<u32>,
    /// See [`PoolOptions::min_idle`].
    pub min_idle: u32,
    /// See [`PoolOptions::max_waiting`]. A lower limit does not reject callers that wait already.
    pub max_waiting: Option<u32>,
    /// See [`PoolOptions::queue_target`]. A new target concerns callers that wait already only when a connection is handed out.
    pub queue_target: Option<Duration>,
    /// See [`PoolOptions::queue_interval`].
    pub queue_interval: Duration,
}
