//! Who holds what, since when, and from where.

use std::backtrace::Backtrace;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use sqlx::SqlStr;

use crate::pool::Cancels;
use crate::{PoolOptions, sql};

/// What a pool remembers of those who hold its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Tracking {
    /// Nothing: no [holders](crate::Pool::holders), no leaks.
    Off,
    /// The line that asked, since when, in a transaction or not, and the statement that runs.
    #[default]
    Lines,
    /// The call stack of the one who asked, too. It costs some hundred microseconds each time.
    Stacks,
}

/// One connection on loan.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Holder {
    /// The process id of its server process, as in `pg_stat_activity`.
    pub pid: i32,
    /// Where the program asked for it.
    pub at: CallSite,
    /// How long it has been out.
    pub held: Duration,
    /// Whether a transaction is open on it.
    pub in_transaction: bool,
    /// The statement that runs on it now, without its literals, and for how long.
    pub statement: Option<(String, Duration)>,
    /// Whether it is held for longer than its threshold.
    pub leaked: bool,
    /// The call stack of the one who asked, with [`Tracking::Stacks`].
    pub stack: Option<Arc<Backtrace>>,
}

impl fmt::Display for Holder {
    /// `src/orders.rs:17 for 12.3 s, in a transaction, running for 2.0 s: select …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, held, in_transaction, statement, .. } = self;
        write!(f, "{at} for {:.1} s", held.as_secs_f64())?;
        if *in_transaction {
            write!(f, ", in a transaction")?;
        }
        match statement {
            Some((sql, since)) => write!(f, ", running for {:.1} s: {sql}", since.as_secs_f64()),
            None => write!(f, ", running nothing"),
        }
    }
}

/// Where the program asked for a connection: the line that made the [`Handle`](crate::Handle). `&Pool` as an executor has
/// none, since a trait's method does not learn who calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSite(Option<&'static Location<'static>>);

impl CallSite {
    #[track_caller]
    pub(crate) fn caller() -> Self {
        Self(Some(Location::caller()))
    }

    pub(crate) fn unknown() -> Self {
        Self(None)
    }

    /// The line, if it is known.
    #[must_use]
    pub fn location(self) -> Option<&'static Location<'static>> {
        self.0
    }
}

impl fmt::Display for CallSite {
    /// `src/orders.rs:17`, or `&Pool, whose call site is not known`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(at) => write!(f, "{}:{}", at.file(), at.line()),
            None => f.write_str("&Pool, whose call site is not known"),
        }
    }
}

/// Who asks for a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) at: CallSite,
    pub(crate) leak_after: Duration,
    pub(crate) acquire_timeout: Duration,
}

impl Asker {
    /// Asks as the options of its pool say.
    pub(crate) fn new(at: CallSite, options: &PoolOptions) -> Self {
        Self { at, leak_after: options.leak_after, acquire_timeout: options.acquire_timeout }
    }
}

/// One session on the server, known from its first answer to its end.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    /// When the server process began, in the server's own words. With it, a process id that is used again is not
    /// mistaken for this one.
    pub(crate) began: String,
    pub(crate) cancels: Cancels,
    loan: Mutex<Option<Loan>>,
}

#[derive(Debug)]
pub(crate) struct Loan {
    asker: Asker,
    since: Instant,
    task: TaskKey,
    in_transaction: bool,
    statement: Option<(SqlStr, Instant)>,
    leaked: bool,
    stack: Option<Arc<Backtrace>>,
}

/// What the end of a loan means for those who watch.
pub(crate) struct Returned {
    pub(crate) at: CallSite,
    pub(crate) held: Duration,
    pub(crate) leaked: bool,
}

impl Session {
    pub(crate) fn new(pid: i32, began: String) -> Self {
        Self { pid, began, cancels: Cancels::new(), loan: Mutex::new(None) }
    }

    /// One of a pooler's, which may be another with each transaction.
    pub(crate) fn unknown() -> Self {
        Self::new(0, String::new())
    }

    fn loan(&self) -> MutexGuard<'_, Option<Loan>> {
        self.loan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it is lent out, and what runs on it from the same moment, if anything does.
    pub(crate) fn lend(&self, asker: Asker, since: Instant, tracking: Tracking, statement: Option<&SqlStr>) {
        if tracking == Tracking::Off {
            return;
        }
        let stack = (tracking == Tracking::Stacks).then(|| Arc::new(Backtrace::force_capture()));
        *self.loan() = Some(Loan {
            asker,
            since,
            task: TaskKey::here(),
            in_transaction: false,
            statement: statement.map(|sql| (sql.clone(), since)),
            leaked: false,
            stack,
        });
    }

    pub(crate) fn take_back(&self, now: Instant) -> Option<Returned> {
        let loan = self.loan().take()?;
        Some(Returned { at: loan.asker.at, held: now.duration_since(loan.since), leaked: loan.leaked })
    }

    /// Notes that a statement begins.
    pub(crate) fn statement_started(&self, sql: &SqlStr, since: Instant) {
        if let Some(loan) = &mut *self.loan() {
            loan.statement = Some((sql.clone(), since));
        }
    }

    /// Notes that the statement is over.
    pub(crate) fn statement_finished(&self) {
        if let Some(loan) = &mut *self.loan() {
            loan.statement = None;
        }
    }

    pub(crate) fn set_in_transaction(&self, is: bool) {
        if let Some(loan) = &mut *self.loan() {
            loan.in_transaction = is;
        }
    }

    /// Where the current task took it, if it did.
    pub(crate) fn taken_here(&self, task: TaskKey) -> Option<CallSite> {
        self.loan().as_ref().filter(|loan| loan.task == task).map(|loan| loan.asker.at)
    }

    /// Flags a loan that has become too long. True the first time.
    pub(crate) fn flag_leak(&self, now: Instant) -> bool {
        match &mut *self.loan() {
            Some(loan) if !loan.leaked && now.duration_since(loan.since) > loan.asker.leak_after => {
                loan.leaked = true;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn since(&self) -> Option<Instant> {
        self.loan().as_ref().map(|loan| loan.since)
    }

    pub(crate) fn holder(&self, now: Instant) -> Option<Holder> {
        let loan = self.loan();
        let loan = loan.as_ref()?;
        Some(Holder {
            pid: self.pid,
            at: loan.asker.at,
            held: now.saturating_duration_since(loan.since),
            in_transaction: loan.in_transaction,
            statement: loan
                .statement
                .as_ref()
                .map(|(sql, since)| (sql::shown(sql.as_str()), now.saturating_duration_since(*since))),
            leaked: loan.leaked,
            stack: loan.stack.clone(),
        })
    }
}

/// The task that runs now. What a runtime blocks on is no task of tokio's, but stays on its thread.
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
