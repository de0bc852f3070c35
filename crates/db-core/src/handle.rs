//! Handles, on which queries run.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::SqlStr;

use crate::call_site::CallSite;
use crate::deadline::within;
use crate::encryption::Keys;
use crate::observer::Retried;
use crate::pool::Lane;
use crate::retry::{Classify, Pauses};
use crate::tracker::Caller;
use crate::{AcquireError, Class, Conn, Error, ErrorType, Pool, Tx, TxOptions, TxRetry};

/// A pool with a call site.
///
/// Created by [`Pool::handle`], a plain `#[track_caller]` function, since the attribute has no effect on async functions. A `Handle`
/// is a sqlx executor that acquires a connection for one statement; [`Handle::tx`] keeps a connection for several.
#[derive(Debug, Clone)]
pub struct Handle {
    pool: Pool,
    caller: Caller,
}

impl Handle {
    pub(crate) fn new(pool: Pool, caller: Caller) -> Self {
        Self { pool, caller }
    }

    /// A handle without a call site: a trait's method cannot know its caller.
    pub(crate) fn of(pool: &Pool) -> Self {
        Self { pool: pool.clone(), caller: Caller::new(CallSite::unknown(), pool.options()) }
    }

    /// Acquires a connection for one statement, which must be sent at once.
    pub(crate) fn acquire_for(
        self,
        statement: &SqlStr,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send {
        self.pool.acquire_for(self.caller, statement)
    }

    /// The same, for another line.
    #[cfg(feature = "sea-orm")]
    pub(crate) fn at(&self, at: CallSite) -> Self {
        Self { pool: self.pool.clone(), caller: Caller { at, ..self.caller } }
    }

    /// The same handle with this line as its call site, for a handle that was made elsewhere.
    #[must_use]
    #[track_caller]
    pub fn here(&self) -> Self {
        Self { pool: self.pool.clone(), caller: Caller { at: CallSite::caller(), ..self.caller } }
    }

    /// The pool behind the handle.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The encryption keys, if they were attached to the pool.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.pool.attached()
    }

    /// Sets how long a connection acquired by this handle may be held before it counts as leaked, in place of the pool's
    /// [`leak_after`](crate::PoolOptions::leak_after).
    #[must_use]
    pub fn leak_after(mut self, threshold: Duration) -> Self {
        self.caller.leak_after = threshold;
        self
    }

    /// Names the work of this handle, such as `orders/list`. The name is in [holders](crate::Pool::holders), in the query log and in
    /// what [observers](crate::Observer) hear.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.caller.name = Some(name);
        self
    }

    /// Sets how long this handle waits for a connection, in place of the pool's
    /// [`acquire_timeout`](crate::PoolOptions::acquire_timeout).
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.caller.acquire_timeout = timeout;
        self
    }

    /// Serves this handle before others when callers wait: for work that must not be late, such as a payment, and that is rare. Every fourth
    /// connection goes to the caller of another lane that has waited for longest, so that nobody starves.
    ///
    /// ```
    /// # async fn example(db: db_core::Pool) -> Result<(), db_core::Error> {
    /// sqlx::query("insert into payments default values").execute(db.handle().urgent()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn urgent(mut self) -> Self {
        self.caller.lane = Lane::Urgent;
        self
    }

    /// Serves this handle after others when callers wait, and refuses it first: for work that can be done later, such as a report. With
    /// [`max_waiting`](crate::PoolOptions::max_waiting) callers in the queue, others take the place of the patient one that came last, and
    /// after [`queue_target`](crate::PoolOptions::queue_target) it is refused in half the time. Every fourth connection goes to the caller
    /// of another lane that has waited for longest, so that nobody starves.
    #[must_use]
    pub fn patient(mut self) -> Self {
        self.caller.lane = Lane::Patient;
        self
    }

    /// Refuses a caller now that would be refused later: for a layer in front of work that costs something before it needs a connection,
    /// such as reading a request's body. Beside the pool's own rules, a caller is refused whose wait, estimated from recent checkouts, is
    /// longer than the one for which it would be refused in the end. `Ok` reserves no place.
    ///
    /// # Errors
    ///
    /// That of [`acquire`](Self::acquire): [`Shed`](crate::AcquirePhase::Shed), [`Overloaded`](crate::AcquirePhase::Overloaded) or
    /// [`Closed`](crate::AcquirePhase::Closed). It is counted and reported as one.
    pub fn admit(&self) -> Result<(), AcquireError> {
        self.pool.admit(self.caller)
    }

    /// Sets when the work of this handle must be done, for example because the client of a request leaves then. The wait for a connection ends
    /// at that time at the latest, and so do statements, `COPY` and transactions, which are cancelled on the server; afterwards, nothing is
    /// sent. A `COPY` that is cut off loses its connection. A commit that was sent is waited for, so that its outcome is known, and what runs on
    /// [`as_sqlx`](crate::Session::as_sqlx) has no deadline. Of several deadlines, the earliest counts. The limits of the pool hold beside it.
    ///
    /// An error says that it was this deadline: [`AcquireError::is_past_deadline`], [`DeadlineError::is_callers`](crate::DeadlineError::is_callers).
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// # async fn example(db: db_core::Pool) -> Result<(), db_core::Error> {
    /// let soon = Instant::now() + Duration::from_millis(300);
    /// sqlx::query("refresh materialized view totals").execute(db.handle().deadline(soon)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn deadline(mut self, at: Instant) -> Self {
        self.caller.deadline = Some(self.caller.deadline.map_or(at, |earlier| earlier.min(at)));
        self
    }

    /// Acquires an idle connection; `None` if there is none. It neither joins the queue nor has a connection dialled. As
    /// in [`acquire`](Self::acquire), a connection that was idle for longer than [`ping_after`](crate::PoolOptions::ping_after) is
    /// pinged first, for at most 0.3 s; if it does not answer, the next idle one is tried.
    ///
    /// Cancel safe.
    pub fn try_acquire(&self) -> impl Future<Output = Option<Conn>> + Send + use<> {
        self.pool.try_acquire(self.caller)
    }

    /// Acquires a connection within the acquire timeout. The future borrows nothing, so it may be spawned.
    ///
    /// Cancel safe: dropping the future leaves the queue, and a connection that was already on its way goes to the next caller.
    ///
    /// # Errors
    ///
    /// [`AcquireError`] contains the phase, the wait, the pool's numbers, the oldest checkout, and the last dial failure.
    pub fn acquire(&self) -> impl Future<Output = Result<Conn, AcquireError>> + Send + use<> {
        self.pool.acquire(self.caller)
    }

    /// Acquires a connection and begins a transaction. [`Handle::tx`] is shorter and ends the transaction by itself.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`], or [`Error::Statement`] if `BEGIN` fails.
    pub fn begin(&self) -> impl Future<Output = Result<Tx, Error>> + Send + use<> {
        self.begin_with(TxOptions::default())
    }

    /// Acquires a connection and begins a transaction with these options.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`], or [`Error::Statement`] if `BEGIN` or a [local setting](TxOptions::set) fails.
    pub fn begin_with(&self, options: TxOptions) -> impl Future<Output = Result<Tx, Error>> + Send + use<> {
        let acquired = self.acquire();
        async move { acquired.await?.begin_with(options).await }
    }

    /// Runs `work` in a transaction. Commits if it returns `Ok`. Rolls back if it returns `Err`, panics, takes longer than the
    /// pool's [`tx_timeout`](crate::PoolOptions::tx_timeout), or if the future is dropped. `work` runs once and is never
    /// repeated.
    ///
    /// # Errors
    ///
    /// The error of `work` unchanged; the errors of [`Handle::begin`] and [`Tx::commit`]; [`Error::Deadline`].
    pub async fn tx<T, E, F>(self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        self.tx_with(TxOptions::default(), work).await
    }

    /// [`Handle::tx`] with options.
    ///
    /// # Errors
    ///
    /// As [`Handle::tx`].
    pub async fn tx_with<T, E, F>(self, options: TxOptions, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        let mut tx = self.begin_with(options).await?;
        let ends = tx.ends();
        let Some(result) = within(ends, pin!(work(&mut tx))).await else {
            // Dropping `tx` rolls back.
            return Err(Error::from(tx.transaction_timed_out()).into());
        };
        end(tx, result).await
    }

    /// Runs `work` in a transaction, and repeats it in a new transaction if the first was certainly not committed: it lost against
    /// another (40001, 40P01), a table changed under a prepared statement, or its session was lost before the commit was sent. After
    /// the commit was sent, it is repeated only if it is known to have been rolled back, which
    /// [`TxOptions::resolve_commit`] finds out.
    ///
    /// The closure that `work` returns may therefore run several times, and its effects outside the transaction happen several times.
    /// `work` is called for each run, and may borrow from its surroundings:
    ///
    /// ```
    /// # db_testkit::run(async |db| {
    /// # let config = db_core::Config::from_url(&db.url())?;
    /// # let pool = db_core::Pool::new(&config, db_core::PoolOptions::api());
    /// # sqlx::query("create table word (t text)").execute(&db.pool()).await?;
    /// # let words = vec!["hello".to_owned()];
    /// use db_core::{Isolation, TxRetry, TxOptions};
    ///
    /// let words = &words;
    /// pool.handle()
    ///     .tx_retry(
    ///         TxOptions::default().isolation(Isolation::Serializable),
    ///         TxRetry::default(),
    ///         || async move |tx| {
    ///             for word in words {
    ///                 sqlx::query("insert into word values ($1)").bind(word).execute(&mut *tx).await?;
    ///             }
    ///             Ok::<_, db_core::Error>(())
    ///         },
    ///     )
    ///     .await?;
    /// # Ok::<_, db_core::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The last error, as in [`Handle::tx`].
    pub async fn tx_retry<T, E, F, W>(self, options: TxOptions, policy: TxRetry, mut work: F) -> Result<T, E>
    where
        F: FnMut() -> W,
        W: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        let mut pauses = Pauses::new(policy);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (error, why) = match self.attempt(&options, work()).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            let Some((class, why)) = why else { return Err(error) };
            let Some(pause) = pauses.after(class) else { return Err(error) };
            if self
                .caller
                .deadline
                .is_some_and(|deadline| pause >= deadline.saturating_duration_since(Instant::now()))
            {
                return Err(error);
            }
            tracing::info!(pool = self.pool.name(), attempt, %why, ?pause, "the transaction is repeated");
            self.pool.retried(&Retried { at: self.caller.at, attempt, error: why, pause });
            tokio::time::sleep(pause).await;
        }
    }

    /// Runs the transaction once. Returns with an error the reason for which it may be repeated, if any.
    async fn attempt<T, E, W>(
        &self,
        options: &TxOptions,
        work: W,
    ) -> Result<T, (E, Option<(Class, ErrorType)>)>
    where
        W: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        // The transaction has no effect yet, so every transient error may be retried.
        let ours = |error: Error| {
            let why = error.retry_class().map(|class| (class, error.error_type()));
            (E::from(error), why)
        };
        let mut tx = self.begin_with(options.clone()).await.map_err(ours)?;
        let ends = tx.ends();
        let Some(result) = within(ends, pin!(work(&mut tx))).await else {
            return Err((Error::from(tx.transaction_timed_out()).into(), None));
        };
        // The transaction knows its first failure, while the error of `work` may be of any kind.
        let failure = tx.failure();
        match result {
            Ok(value) => match tx.commit().await {
                Ok(()) => Ok(value),
                Err(error @ Error::CommitUnknown(_)) => Err((error.into(), None)),
                // Rolled back because of a failed statement whose error `work` ignored.
                Err(error @ Error::Aborted) => Err((error.into(), failure)),
                Err(error) => Err(ours(error)),
            },
            Err(error) => {
                roll_back(tx).await;
                Err((error, failure))
            }
        }
    }
}

async fn end<T, E: From<Error>>(tx: Tx, result: Result<T, E>) -> Result<T, E> {
    match result {
        Ok(value) => {
            tx.commit().await?;
            Ok(value)
        }
        Err(error) => {
            roll_back(tx).await;
            Err(error)
        }
    }
}

async fn roll_back(tx: Tx) {
    if tx.is_busy_or_lost() {
        // The repair cancels the statement and rolls back, and the caller need not wait.
        return;
    }
    if let Err(error) = tx.rollback().await {
        // The link is lost, so the server rolls back by itself.
        tracing::debug!(%error, "rolling back after an error failed");
    }
}
