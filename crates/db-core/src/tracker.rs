//! Tracks checkouts: call site, start, and statement.

use std::backtrace::Backtrace;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use sqlx::SqlStr;

use crate::call_site::{At, CallSite};
use crate::cancels::Cancels;
use crate::pool::Lane;
use crate::pool_options::{PoolOptions, Tracking};
use crate::sql;

/// One checkout.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Holder {
    /// The process id of the session's server process, as in `pg_stat_activity`.
    pub pid: i32,
    /// The call site of the acquire.
    pub at: CallSite,
    /// The name that [`Handle::named`](crate::Handle::named) gave.
    pub name: Option<&'static str>,
    /// How long the connection has been held.
    pub held: Duration,
    /// Whether a transaction is open.
    pub in_transaction: bool,
    /// The running statement without its literals, and how long it has been running. One whose future was dropped counts as running until the
    /// next one begins.
    pub statement: Option<(String, Duration)>,
    /// How long nothing has been running, since the checkout or the end of the last statement; `None` while a statement is running.
    pub idle: Option<Duration>,
    /// Whether the statement has been running for longer than [`slow_statement`](crate::PoolOptions::slow_statement).
    pub slow: bool,
    /// Whether the connection is held for longer than its threshold.
    pub leaked: bool,
    /// The call stack of the acquire, with [`Tracking::Stacks`].
    pub stack: Option<Arc<Backtrace>>,
}

impl fmt::Display for Holder {
    /// `src/orders.rs:17 (orders/list) for 12.3 s, in a transaction, running for 2.0 s: select …`, or `…, idle for 2.0 s`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, name, held, in_transaction, statement, idle, .. } = self;
        write!(f, "{} for {:.1} s", At(*at, *name), held.as_secs_f64())?;
        if *in_transaction {
            write!(f, ", in a transaction")?;
        }
        match statement {
            Some((sql, since)) => write!(f, ", running for {:.1} s: {sql}", since.as_secs_f64()),
            None => write!(f, ", idle for {:.1} s", idle.unwrap_or(*held).as_secs_f64()),
        }
    }
}

/// The call site and limits of a request for a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) at: CallSite,
    pub(crate) name: Option<&'static str>,
    pub(crate) leak_after: Duration,
    pub(crate) slow_statement: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) lane: Lane,
    /// When the work must be done.
    pub(crate) deadline: Option<Instant>,
}

impl Caller {
    /// A caller with the limits of the pool's options.
    pub(crate) fn new(at: CallSite, options: &PoolOptions) -> Self {
        Self {
            at,
            name: None,
            leak_after: options.leak_after,
            slow_statement: options.slow_statement,
            acquire_timeout: options.acquire_timeout,
            lane: Lane::default(),
            deadline: None,
        }
    }

    /// The same, waiting for a connection until its deadline at most.
    pub(crate) fn from(self, now: Instant) -> Self {
        let Some(deadline) = self.deadline else { return self };
        let left = deadline.saturating_duration_since(now);
        Self { acquire_timeout: self.acquire_timeout.min(left), ..self }
    }

    /// Whether its deadline has passed.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// A session on the server.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    /// When the server process started, as the server prints it. It distinguishes the session from a later one with the same process
    /// id.
    pub(crate) began: String,
    pub(crate) cancels: Cancels,
    checkout: Mutex<Option<Checkout>>,
}

#[derive(Debug)]
pub(crate) struct Checkout {
    /// Of the caller, without what it only needs to get the connection.
    at: CallSite,
    name: Option<&'static str>,
    leak_after: Duration,
    slow_statement: Duration,
    since: Instant,
    task: TaskKey,
    in_transaction: bool,
    statement: Option<(SqlStr, Instant)>,
    /// Since when nothing is running, if no statement is.
    idle_since: Instant,
    leaked: bool,
    stack: Option<Arc<Backtrace>>,
}

/// The tracker's data about an ended checkout.
pub(crate) struct Returned {
    pub(crate) at: CallSite,
    pub(crate) held: Duration,
    pub(crate) leaked: bool,
}

impl Session {
    pub(crate) fn new(pid: i32, began: String) -> Self {
        Self { pid, began, cancels: Cancels::new(), checkout: Mutex::new(None) }
    }

    /// A pooler's session, which may change with each transaction.
    pub(crate) fn unknown() -> Self {
        Self::new(0, String::new())
    }

    fn checkout(&self) -> MutexGuard<'_, Option<Checkout>> {
        self.checkout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the start of a checkout, and of a statement if one is given.
    pub(crate) fn start_checkout(
        &self,
        caller: Caller,
        since: Instant,
        tracking: Tracking,
        statement: Option<&SqlStr>,
    ) {
        if tracking == Tracking::Off {
            return;
        }
        let stack = (tracking == Tracking::Stacks).then(|| Arc::new(Backtrace::force_capture()));
        *self.checkout() = Some(Checkout {
            at: caller.at,
            name: caller.name,
            leak_after: caller.leak_after,
            slow_statement: caller.slow_statement,
            since,
            task: TaskKey::here(),
            in_transaction: false,
            statement: statement.map(|sql| (sql.clone(), since)),
            idle_since: since,
            leaked: false,
            stack,
        });
    }

    pub(crate) fn end_checkout(&self, now: Instant) -> Option<Returned> {
        let checkout = self.checkout().take()?;
        Some(Returned { at: checkout.at, held: now.duration_since(checkout.since), leaked: checkout.leaked })
    }

    /// Records the start of a statement.
    pub(crate) fn statement_started(&self, sql: &SqlStr, since: Instant) {
        if let Some(checkout) = &mut *self.checkout() {
            checkout.statement = Some((sql.clone(), since));
        }
    }

    /// Records the end of a statement.
    pub(crate) fn statement_finished(&self, now: Instant) {
        if let Some(checkout) = &mut *self.checkout() {
            checkout.statement = None;
            checkout.idle_since = now;
        }
    }

    pub(crate) fn set_in_transaction(&self, in_transaction: bool) {
        if let Some(checkout) = &mut *self.checkout() {
            checkout.in_transaction = in_transaction;
        }
    }

    /// The call site of the checkout, if `task` made it.
    pub(crate) fn acquired_by(&self, task: TaskKey) -> Option<CallSite> {
        self.checkout().as_ref().filter(|checkout| checkout.task == task).map(|checkout| checkout.at)
    }

    /// Flags a checkout that takes too long. Returns it the first time.
    pub(crate) fn flag_leak(&self, now: Instant) -> Option<Holder> {
        let mut checkout = self.checkout();
        let held = checkout
            .as_mut()
            .filter(|held| !held.leaked && now.saturating_duration_since(held.since) > held.leak_after)?;
        held.leaked = true;
        Some(held.holder(self.pid, now))
    }

    pub(crate) fn since(&self) -> Option<Instant> {
        self.checkout().as_ref().map(|checkout| checkout.since)
    }

    pub(crate) fn holder(&self, now: Instant) -> Option<Holder> {
        self.checkout().as_ref().map(|checkout| checkout.holder(self.pid, now))
    }
}

impl Checkout {
    fn holder(&self, pid: i32, now: Instant) -> Holder {
        let Self {
            at,
            name,
            slow_statement,
            since,
            in_transaction,
            statement,
            idle_since,
            leaked,
            stack,
            ..
        } = self;
        let running = statement.as_ref().map(|(sql, began)| (sql, now.saturating_duration_since(*began)));
        Holder {
            pid,
            at: *at,
            name: *name,
            held: now.saturating_duration_since(*since),
            in_transaction: *in_transaction,
            slow: running.is_some_and(|(_, took)| took >= *slow_statement),
            statement: running.map(|(sql, took)| (sql::redact_sql(sql.as_str()), took)),
            idle: statement.is_none().then(|| now.saturating_duration_since(*idle_since)),
            leaked: *leaked,
            stack: stack.clone(),
        }
    }
}

/// The current task. Outside a task, for example in `block_on`, the thread takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskKey {
    Task(tokio::task::Id),
    Thread(ThreadId),
}

impl TaskKey {
    pub(crate) fn here() -> Self {
        tokio::task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}
