//! The cheap thing that queries are run on.

use std::panic::Location;

use async_stream::try_stream;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, Postgres, SqlStr};

use crate::{AcquireError, Conn, Error, Pool, Tx};

/// A pool, seen from one line of the program.
///
/// Made by [`Pool::handle`], a plain `#[track_caller]` function: the attribute does nothing on an async one. A `Handle`
/// is a sqlx executor that takes a connection for one statement; [`Handle::tx`] keeps one for several.
#[derive(Debug, Clone)]
pub struct Handle {
    pool: Pool,
    at: &'static Location<'static>,
}

impl Handle {
    pub(crate) fn new(pool: Pool, at: &'static Location<'static>) -> Self {
        Self { pool, at }
    }

    /// The pool behind the handle.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Takes a connection, waiting at most for the pool's acquire time-out, and 0.6 s more to find out why there is none.
    ///
    /// Cancel safe: dropping the future gives up the place in the queue.
    ///
    /// # Errors
    ///
    /// [`AcquireError`] says how long it waited, for which pool, and whether all connections were taken or none could
    /// be made.
    pub async fn acquire(&self) -> Result<Conn, AcquireError> {
        self.pool.acquire(self.at).await
    }

    /// Takes a connection and begins a transaction on it. [`Handle::tx`] is shorter and cannot forget the end.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`], or [`Error::Statement`] when `BEGIN` fails.
    pub async fn begin(&self) -> Result<Tx, Error> {
        self.acquire().await?.begin().await
    }

    /// Runs `work` in a transaction: committed when it returns `Ok`, rolled back when it returns `Err`, panics, or its
    /// future is dropped. It runs once and is never repeated.
    ///
    /// # Errors
    ///
    /// The error of `work` as it is; else what [`Handle::begin`] and [`Tx::commit`] say.
    pub async fn tx<T, E, F>(self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        let mut tx = self.begin().await?;
        match work(&mut tx).await {
            Ok(value) => {
                tx.commit().await?;
                Ok(value)
            }
            Err(error) => {
                if let Err(rollback) = tx.rollback().await {
                    // The connection is closed, and the server rolls back by itself.
                    tracing::debug!(%rollback, "roll back after an error failed");
                }
                Err(error)
            }
        }
    }
}

impl<'c> Executor<'c> for Handle {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(try_stream! {
            let mut conn = self.acquire().await?;
            let mut results = conn.fetch_many(query);
            while let Some(result) = results.try_next().await? {
                yield result;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move { self.acquire().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.acquire().await?.prepare_with(sql, parameters).await })
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.acquire().await?.describe(sql).await })
    }
}
