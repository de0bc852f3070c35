//! A session on the server while it is lent: what helper functions take.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use sqlx::{Connection, SqlStr};
use tokio::time::timeout;

use crate::Error;
use crate::deadline::{DeadlineError, Limited};
use crate::doubt::{Hook, When};
use crate::encryption::Keyring;
use crate::pool::{CheckedOut, Live, Shared};
use crate::statement::{Flight, State};
use crate::tracker::{Asker, CallSite};
use crate::tx::Nesting;

mod copy;
mod executor;
mod lend;
mod replan;
mod rest;
mod run;
pub(crate) mod sqlx_depth;

pub use copy::CopyIn;

/// A session on the server, in a transaction or outside of one: what a function takes that runs statements and does not care
/// which it is.
///
/// [`Conn`](crate::Conn), [`Tx`](crate::Tx) and [`Savepoint`](crate::Savepoint) lead to it by `DerefMut`, so a function is
/// written once and called with each of them. `&mut Session` is a sqlx executor.
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
/// All that is known of a transaction is kept here: two sessions that are swapped (`std::mem::swap`) take their transactions
/// along.
pub struct Session {
    /// None once the connection was closed before the loan's end.
    live: Option<CheckedOut>,
    inner: Arc<Shared>,
    /// Where it was asked for.
    pub(crate) at: CallSite,
    /// When it was handed out.
    taken: Instant,
    /// It was taken for one statement, which is sent when it is taken, and goes back with the answer: two readings of the clock
    /// and two notes to the tracker less.
    once: bool,
    pub(crate) state: State,
    /// Savepoints, and what waits for the commit. Most transactions have neither.
    pub(crate) nesting: Option<Box<Nesting>>,
}

impl Session {
    /// Lent out now, for one statement if that is told.
    pub(crate) fn new(
        live: CheckedOut,
        inner: Arc<Shared>,
        asker: Asker,
        now: Instant,
        statement: Option<&SqlStr>,
    ) -> Self {
        live.session.lend(asker, now, inner.options.tracker, statement);
        let once = statement.is_some();
        Self {
            live: Some(live),
            inner,
            at: asker.at,
            taken: now,
            once,
            state: State::default(),
            nesting: None,
        }
    }

    /// Notes that there was something to do before it could be handed out, for one statement if that is told.
    pub(crate) fn start_checkout(&mut self, statement: Option<&SqlStr>) {
        self.taken = Instant::now();
        self.once = statement.is_some();
        if let Some(sql) = statement.filter(|_| self.inner.tracks()) {
            self.live().session.statement_started(sql, self.taken);
        }
    }

    /// Asks the server for an answer: one round trip, which no statistics show.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] when there is none within the pool's
    /// [`statement_timeout`](crate::PoolOptions::statement_timeout), [`Error::Statement`] when the link is lost.
    pub async fn ping(&mut self) -> Result<(), Error> {
        self.drain().await?;
        let limit = self.limit();
        let (live, state) = self.parts();
        state.begin(Flight::Control);
        if let Ok(answer) = timeout(limit.wait, live.raw.ping()).await {
            state.end(answer.as_ref().err());
            Ok(answer?)
        } else {
            Err(self.expired(limit).into())
        }
    }

    /// Gives back the memory to which the driver's buffers have grown, as after a row of some megabytes. A connection keeps that
    /// memory otherwise for as long as it lives. It costs a round trip.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`ping`](Self::ping) has them.
    pub async fn shrink_buffers(&mut self) -> Result<(), Error> {
        self.drain().await?;
        self.live_mut().raw.shrink_buffers();
        // What was read last is kept until something is read into the new buffer.
        self.ping().await
    }

    /// Runs something once the transaction is known to be committed: right after the commit's answer, in the order given,
    /// before [`Tx::commit`](crate::Tx::commit) returns; in the background, when its future was dropped and the answer comes all
    /// the same. Not when the transaction is rolled back, nor when its outcome is not known, nor when the savepoint in which
    /// this was called is undone. Outside of a transaction, where each statement is committed by itself, it runs at once.
    ///
    /// It must not block.
    pub fn after_commit(&mut self, run: impl FnOnce() + Send + 'static) {
        self.hook(When::Committed, run);
    }

    /// As [`after_commit`](Self::after_commit), and also when the commit was sent and nobody can tell what became of it: its
    /// answer was lost ([`Error::CommitUnknown`]), or its future, its task or its runtime ended before the answer came. For what
    /// wakes others up, who then look for themselves: once too often does no harm there, and not at all does.
    ///
    /// It runs when the server has come to the end of the commit, so that others can see what was stored; at once when the link
    /// is lost, which may be before that.
    pub fn unless_rolled_back(&mut self, run: impl FnOnce() + Send + 'static) {
        self.hook(When::NotRolledBack, run);
    }

    /// Runs something if a statement on this session is cut off, since its future is dropped, a limit has passed or the
    /// link is lost: once the server has come to the end of it, or nobody can know any more, in the background. Not when the
    /// server is known to have refused the statement, nor when every statement is answered: its caller knows then.
    ///
    /// It is for wake-ups: the statement may be done, and its caller gone. See [`unless_rolled_back`](Self::unless_rolled_back),
    /// which is the same for a commit. It must not block.
    pub fn if_cut_off(&mut self, run: impl FnOnce() + Send + 'static) {
        let hook = Hook { level: 0, when: When::NotRolledBack, run: Box::new(run) };
        self.state.doubt.add(vec![hook]);
    }

    /// What was [attached](crate::Pool::attach) to its pool.
    #[must_use]
    pub fn attached<T: std::any::Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.inner.companions.get()
    }

    /// The keys that columns are sealed under, if they were attached to its pool.
    #[must_use]
    pub fn keyring(&self) -> Option<Arc<Keyring>> {
        self.attached()
    }

    /// The process id of the server process, as in `pg_stat_activity`. 0 through a
    /// [pooler](crate::Pooler::Transaction), where it may be another one with each transaction, and once the connection was
    /// closed.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.live.as_ref().map_or(0, |live| live.session.pid)
    }

    pub(crate) fn live(&self) -> &Live {
        self.live.as_deref().expect("nothing is sent once it was closed")
    }

    pub(crate) fn live_mut(&mut self) -> &mut Live {
        self.live.as_deref_mut().expect("nothing is sent once it was closed")
    }

    pub(crate) fn parts(&mut self) -> (&mut Live, &mut State) {
        (self.live.as_deref_mut().expect("nothing is sent once it was closed"), &mut self.state)
    }

    pub(crate) fn inner(&self) -> &Arc<Shared> {
        &self.inner
    }

    /// How long the next wait for the server may be.
    pub(crate) fn limit(&self) -> Limited {
        let statement = Limited::of_statement(self.inner.options.statement_timeout);
        match &self.state.ends {
            Some(ends) => ends.limit().min(statement),
            None => statement,
        }
    }

    /// The error of a wait that was too long. The statement stays in flight, so it is cancelled when the connection is
    /// dropped.
    pub(crate) fn expired(&self, limit: Limited) -> DeadlineError {
        DeadlineError::new(&self.inner.options.name, self.at, limit)
    }

    /// Gives the connection back, or to those who repair or close it.
    fn leave(&mut self) {
        let Some(live) = self.live.take() else { return };
        let is_over = self.once && self.state.is_clean();
        let now = if is_over { live.last_seen } else { Instant::now() };
        let returned = live.session.take_back(now);
        if let Some(returned) = returned.as_ref().filter(|returned| returned.leaked) {
            let (pool, pid, held) = (&self.inner.options.name, live.session.pid, returned.held);
            let at = returned.at;
            tracing::info!(
                target: "db_core::conn",
                pool,
                pid,
                ?held,
                "a connection that was held for too long was returned after all: {at}"
            );
        }
        let mut state = std::mem::take(&mut self.state);
        if state.in_flight().is_none() && !state.is_lost() {
            // There is no doubt about anything.
            state.doubt.forget();
        }
        if state.is_lost() {
            self.inner.discard(live, returned.as_ref(), state);
        } else if state.is_clean() && !self.inner.always_resets() {
            self.inner.give_back(live, returned.as_ref(), Some(now));
        } else {
            self.inner.repair(live, returned.as_ref(), state);
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
