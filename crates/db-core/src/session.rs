//! A session while it is checked out.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use sqlx::{Connection, SqlStr};
use tokio::time::timeout;

use crate::Error;
use crate::call_site::CallSite;
use crate::deadline::{Deadline, DeadlineError, WaitLimit};
use crate::encryption::Keys;
use crate::hooks::{Hook, When};
use crate::observer::{Acquired, Released};
use crate::pool::{CheckedOut, Live, Shared};
use crate::statement::{InFlight, State};
use crate::tracker::Caller;
use crate::tx::Nesting;

mod copy;
mod drain;
mod executor;
mod lend;
mod log;
mod replan;
mod run;
mod stale;
mod text;

pub use copy::CopyIn;
#[cfg(feature = "sea-orm")]
pub(crate) use text::Text;

/// A session on the server, inside or outside a transaction: the argument type for functions that run statements and work in both
/// cases.
///
/// [`Conn`](crate::Conn), [`Tx`](crate::Tx) and [`Savepoint`](crate::Savepoint) dereference to it, so one function serves all
/// three. `&mut Session` is a sqlx executor.
///
/// ```no_run
/// # async fn run(pool: db_core::Pool) -> Result<(), db_core::Error> {
/// use db_core::{Error, Session};
///
/// async fn add(db: &mut Session, word: &str) -> Result<(), Error> {
///     sqlx::query("insert into word values ($1)").bind(word).execute(&mut *db).await?;
///     Ok(())
/// }
///
/// let mut conn = pool.handle().acquire().await?;
/// add(&mut conn, "alone").await?;
/// pool.handle()
///     .tx(async |tx| {
///         add(tx, "in a transaction").await?;
///         tx.nested(async |part| add(part, "in a part of it").await).await
///     })
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// The session keeps the whole state of its transaction: `std::mem::swap` of two sessions swaps their transactions, too.
pub struct Session {
    /// `None` once the connection was closed before the end of the checkout.
    live: Option<CheckedOut>,
    inner: Arc<Shared>,
    /// The call site of the acquire.
    pub(crate) at: CallSite,
    /// The name of the work.
    name: Option<&'static str>,
    /// When the connection was checked out.
    taken: Instant,
    /// The checkout is for one statement, which is sent at once, and ends with its answer. This saves two clock readings and two tracker
    /// updates.
    once: bool,
    /// A caller has got the connection: it was not only checked for one.
    is_handed_out: bool,
    pub(crate) state: State,
    /// Savepoints and hooks for the commit. Most transactions have neither.
    pub(crate) nesting: Option<Box<Nesting>>,
}

impl Session {
    /// Starts a checkout, for one statement if one is given.
    pub(crate) fn new(
        live: CheckedOut,
        inner: Arc<Shared>,
        caller: Caller,
        now: Instant,
        statement: Option<&SqlStr>,
    ) -> Self {
        live.session.start_checkout(caller, now, inner.options.tracker, statement);
        let once = statement.is_some();
        Self {
            live: Some(live),
            inner,
            at: caller.at,
            name: caller.name,
            taken: now,
            once,
            is_handed_out: false,
            state: State::until(caller.deadline.map(Deadline::of_caller)),
            nesting: None,
        }
    }

    /// Restarts the checkout after the connection was checked, for one statement if one is given.
    pub(crate) fn start_checkout(&mut self, statement: Option<&SqlStr>) {
        self.taken = Instant::now();
        self.once = statement.is_some();
        if let Some(sql) = statement.filter(|_| self.inner.tracks()) {
            self.live().session.statement_started(sql, self.taken);
        }
    }

    /// Hands the connection to its caller.
    pub(crate) fn hand_out(&mut self, waited: &Acquired) {
        self.is_handed_out = true;
        self.inner.observers.report(|observer| observer.acquired(waited));
    }

    /// Pings the server: one round trip, which no statistics count.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] if there is no answer within the pool's
    /// [`statement_timeout`](crate::PoolOptions::statement_timeout), [`Error::Statement`] if the link is lost.
    pub async fn ping(&mut self) -> Result<(), Error> {
        self.drain().await?;
        let limit = self.limit();
        if limit.is_over() {
            return Err(self.expired(limit).into());
        }
        let (live, state) = self.parts();
        state.begin(InFlight::Control);
        if let Ok(answer) = timeout(limit.wait, live.raw.ping()).await {
            state.end(answer.as_ref().err());
            Ok(answer?)
        } else {
            Err(self.expired(limit).into())
        }
    }

    /// Frees the memory to which the driver's buffers have grown, for example after a row of some megabytes. Without this call, a
    /// connection keeps that memory for its lifetime. Costs a round trip.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`ping`](Self::ping).
    pub async fn shrink_buffers(&mut self) -> Result<(), Error> {
        self.drain().await?;
        self.live_mut().raw.shrink_buffers();
        // The driver keeps the last answer until it reads something into the new buffer.
        self.ping().await
    }

    /// Runs `run` after the transaction is known to be committed: after the commit's answer, in the order of the calls, and before
    /// [`Tx::commit`](crate::Tx::commit) returns. If the commit's future was dropped, `run` runs in the background once the answer
    /// arrives. `run` does not run if the transaction is rolled back, if its outcome is unknown, or if the savepoint in which this was
    /// called is undone. Outside a transaction, each statement commits by itself, so `run` runs at once.
    ///
    /// `run` must not block.
    pub fn after_commit(&mut self, run: impl FnOnce() + Send + 'static) {
        self.hook(When::Committed, run);
    }

    /// As [`after_commit`](Self::after_commit), and also if the outcome of the commit is unknown: its answer was lost
    /// ([`Error::CommitUnknown`]), or its future, task or runtime ended before the answer. Use it for wake-ups, where one too many is
    /// harmless and one too few is not.
    ///
    /// `run` runs when the server has finished the commit, so that others can see its effects; if the link is lost, it runs at once,
    /// which may be earlier.
    pub fn unless_rolled_back(&mut self, run: impl FnOnce() + Send + 'static) {
        self.hook(When::NotRolledBack, run);
    }

    /// Runs `run` in the background if a statement on this session is abandoned: its future is dropped, a limit passes or the link is
    /// lost. It runs when the server has finished the statement, or when its outcome can no longer be learnt. It does not run if the
    /// server is known to have refused the statement, nor if every statement is answered.
    ///
    /// Use it for wake-ups: the statement may have taken effect while its caller is gone.
    /// [`unless_rolled_back`](Self::unless_rolled_back) does the same for a commit. `run` must not block.
    pub fn if_abandoned(&mut self, run: impl FnOnce() + Send + 'static) {
        let hook = Hook { level: 0, when: When::NotRolledBack, run: Box::new(run) };
        self.state.pending_hooks.add(vec![hook]);
    }

    /// The value of this type that was [attached](crate::Pool::attach) to the pool.
    #[must_use]
    pub fn attached<T: std::any::Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.inner.extensions.get()
    }

    /// The encryption keys, if they were attached to the pool.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.attached()
    }

    /// The process id of the session's server process, as in `pg_stat_activity`. 0 behind a [pooler](crate::Pooler::Transaction), where
    /// it may change with each transaction, and 0 after the connection was closed.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.live.as_ref().map_or(0, |live| live.session.pid)
    }

    pub(crate) fn live(&self) -> &Live {
        self.live.as_deref().expect("no statement is sent after the connection was closed")
    }

    pub(crate) fn live_mut(&mut self) -> &mut Live {
        self.live.as_deref_mut().expect("no statement is sent after the connection was closed")
    }

    pub(crate) fn parts(&mut self) -> (&mut Live, &mut State) {
        (
            self.live.as_deref_mut().expect("no statement is sent after the connection was closed"),
            &mut self.state,
        )
    }

    pub(crate) fn inner(&self) -> &Arc<Shared> {
        &self.inner
    }

    /// The limit for the next wait for the server.
    pub(crate) fn limit(&self) -> WaitLimit {
        let statement = WaitLimit::of_statement(self.inner.options.statement_timeout);
        match &self.state.ends {
            Some(ends) => ends.limit().min(statement),
            None => statement,
        }
    }

    /// The error of a wait that exceeded its limit. The statement stays in flight, so it is cancelled when the connection is
    /// dropped.
    pub(crate) fn expired(&self, limit: WaitLimit) -> DeadlineError {
        DeadlineError::new(&self.inner.options.name, self.at, limit)
    }

    /// Ends the checkout: the connection is returned, repaired or closed.
    fn leave(&mut self) {
        let Some(live) = self.live.take() else { return };
        let is_over = self.once && self.state.is_clean();
        let now = if is_over { live.last_seen } else { Instant::now() };
        let returned = live.session.end_checkout(now);
        if let Some(returned) = returned.as_ref().filter(|returned| returned.leaked) {
            let (pool, pid, held) = (&self.inner.options.name, live.session.pid, returned.held);
            let at = returned.at;
            tracing::info!(
                target: "db_core::conn",
                pool,
                pid,
                ?held,
                "a connection that was held for too long was returned: {at}"
            );
        }
        let mut state = std::mem::take(&mut self.state);
        if state.in_flight().is_none() && !state.is_lost() {
            // All statements were answered, so nothing is in doubt.
            state.pending_hooks.clear();
        }
        if state.is_lost() {
            self.inner.discard(live, returned.as_ref(), state);
        } else if state.is_clean() && !self.inner.always_resets() {
            self.inner.give_back(live, returned.as_ref(), Some(now));
        } else {
            self.inner.repair(live, returned.as_ref(), state);
        }
        if self.is_handed_out {
            let released = Released { at: self.at, held: now.saturating_duration_since(self.taken) };
            self.inner.observers.report(|observer| observer.released(&released));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("pool", &self.inner.options.name)
            .field("pid", &self.pid())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
