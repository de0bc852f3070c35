//! The cheap thing that queries are run on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlStr;

use crate::deadline::within;
use crate::encryption::Keyring;
use crate::retry::{Classify, Pauses};
use crate::tracker::{Asker, CallSite};
use crate::{AcquireError, Class, Conn, Error, Pool, Tx, TxOptions, TxRetry};

/// A pool, seen from one line of the program.
///
/// Made by [`Pool::handle`], a plain `#[track_caller]` function: the attribute does nothing on an async one. A `Handle`
/// is a sqlx executor that takes a connection for one statement; [`Handle::tx`] keeps one for several.
#[derive(Debug, Clone)]
pub struct Handle {
    pool: Pool,
    asker: Asker,
}

impl Handle {
    pub(crate) fn new(pool: Pool, asker: Asker) -> Self {
        Self { pool, asker }
    }

    /// One that belongs to no line: a trait's method cannot know who calls it.
    pub(crate) fn of(pool: &Pool) -> Self {
        Self { pool: pool.clone(), asker: Asker::new(CallSite::unknown(), pool.options()) }
    }

    /// Takes a connection for one statement, which is to be sent at once.
    pub(crate) fn acquire_for(
        self,
        statement: &SqlStr,
    ) -> impl Future<Output = Result<Conn, AcquireError>> + Send {
        self.pool.acquire_for(self.asker, statement)
    }

    /// The pool behind the handle.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The keys that columns are sealed under, if they were attached to its pool.
    #[must_use]
    pub fn keyring(&self) -> Option<Arc<Keyring>> {
        self.pool.attached()
    }

    /// Says how long a connection taken by this handle may be held before it counts as leaked, in place of the pool's
    /// [`leak_after`](crate::PoolOptions::leak_after).
    #[must_use]
    pub fn leak_after(mut self, threshold: Duration) -> Self {
        self.asker.leak_after = threshold;
        self
    }

    /// Says how long this handle waits for a connection, in place of the pool's
    /// [`acquire_timeout`](crate::PoolOptions::acquire_timeout).
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.asker.acquire_timeout = timeout;
        self
    }

    /// Takes a connection that is idle, and is `None` if there is none: it neither joins the queue nor has a connection dialled. As
    /// by [`acquire`](Self::acquire), a connection that was idle for longer than [`ping_after`](crate::PoolOptions::ping_after) is
    /// pinged first, for 0.3 s at most; if it does not answer, the next idle one is taken.
    ///
    /// Cancel safe.
    pub fn try_acquire(&self) -> impl Future<Output = Option<Conn>> + Send + use<> {
        self.pool.try_acquire(self.asker)
    }

    /// Takes a connection, waiting at most for the pool's acquire time-out. The future borrows nothing, so it may be spawned.
    ///
    /// Cancel safe: dropping the future gives up the place in the queue, and a connection that was already on its way goes
    /// to the next.
    ///
    /// # Errors
    ///
    /// [`AcquireError`] says what was waited for and how long, how full the pool is, who holds a connection for longest, and
    /// why none could be made.
    pub fn acquire(&self) -> impl Future<Output = Result<Conn, AcquireError>> + Send + use<> {
        self.pool.acquire(self.asker)
    }

    /// Takes a connection and begins a transaction on it. [`Handle::tx`] is shorter and cannot forget the end.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`], or [`Error::Statement`] when `BEGIN` fails.
    pub fn begin(&self) -> impl Future<Output = Result<Tx, Error>> + Send + use<> {
        self.begin_with(TxOptions::default())
    }

    /// Takes a connection and begins a transaction of a certain kind on it.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`], or [`Error::Statement`] when `BEGIN` or a [local setting](TxOptions::set) fails.
    pub fn begin_with(&self, options: TxOptions) -> impl Future<Output = Result<Tx, Error>> + Send + use<> {
        let acquired = self.acquire();
        async move { acquired.await?.begin_with(options).await }
    }

    /// Runs `work` in a transaction: committed when it returns `Ok`, rolled back when it returns `Err`, panics, takes longer
    /// than the pool's [`tx_timeout`](crate::PoolOptions::tx_timeout), or its future is dropped. It runs once and is never
    /// repeated.
    ///
    /// # Errors
    ///
    /// The error of `work` as it is; else what [`Handle::begin`] and [`Tx::commit`] say, and [`Error::Deadline`].
    pub async fn tx<T, E, F>(self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        self.tx_with(TxOptions::default(), work).await
    }

    /// [`Handle::tx`] with a transaction of a certain kind.
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
            // It is rolled back as it is dropped.
            return Err(Error::from(tx.not_done()).into());
        };
        end(tx, result).await
    }

    /// Runs `work` in a transaction, and runs it again in another when the first had no chance: it lost against another one
    /// (40001, 40P01), a table changed under a statement that was prepared before, or its session was lost before the commit
    /// was sent. Once it was sent, it is repeated only when it is known to have been rolled back, as
    /// [`TxOptions::resolve_commit`] finds out.
    ///
    /// What `work` returns may therefore run several times, and what it does outside of the transaction happens several times.
    /// `work` is called for each time, and may borrow from its surroundings:
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
    /// That of the last time, as [`Handle::tx`].
    pub async fn tx_retry<T, E, F, W>(self, options: TxOptions, policy: TxRetry, mut work: F) -> Result<T, E>
    where
        F: FnMut() -> W,
        W: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        let mut pauses = Pauses::new(policy);
        loop {
            let (error, class) = match self.attempt(&options, work()).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            let Some(pause) = class.and_then(|class| pauses.after(class)) else { return Err(error) };
            tracing::info!(pool = self.pool.name(), ?class, ?pause, "the transaction is run again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Runs the transaction once. Says of an error whether, and for what reason, it may be run again.
    async fn attempt<T, E, W>(&self, options: &TxOptions, work: W) -> Result<T, (E, Option<Class>)>
    where
        W: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        // Nothing was done before, so everything that may mend itself may be repeated.
        let ours = |error: Error| {
            let class = error.retry_class();
            (E::from(error), class)
        };
        let mut tx = self.begin_with(options.clone()).await.map_err(ours)?;
        let ends = tx.ends();
        let Some(result) = within(ends, pin!(work(&mut tx))).await else {
            return Err((Error::from(tx.not_done()).into(), None));
        };
        // The transaction knows what it met; the error of `work` may be anything.
        let met = tx.failure();
        match result {
            Ok(value) => match tx.commit().await {
                Ok(()) => Ok(value),
                Err(error @ Error::CommitUnknown(_)) => Err((error.into(), None)),
                // Rolled back for a statement whose failure `work` has swallowed.
                Err(error @ Error::Aborted) => Err((error.into(), met)),
                Err(error) => Err(ours(error)),
            },
            Err(error) => {
                roll_back(tx).await;
                Err((error, met))
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
    if tx.is_cut_off() {
        // Its repair cancels what runs, and rolls back, while the caller goes on.
        return;
    }
    if let Err(error) = tx.rollback().await {
        // The link is lost, and the server rolls back by itself.
        tracing::debug!(%error, "roll back after an error failed");
    }
}
