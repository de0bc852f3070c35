//! Parts of a transaction that can be undone alone.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, Postgres, SqlStr};

use super::Tx;
use crate::Error;

/// A savepoint in a [`Tx`], which ends with [`Savepoint::release`], [`Savepoint::rollback`] or by being dropped.
///
/// `&mut Savepoint` is a sqlx executor. Dropped without a release, what was done since is undone, right before the
/// transaction's next statement or its commit, wherever its future was cut off. Savepoints may be made inside of one.
#[derive(Debug)]
pub struct Savepoint<'t> {
    tx: &'t mut Tx,
    level: usize,
    ended: bool,
}

impl<'t> Savepoint<'t> {
    pub(super) async fn begin(tx: &'t mut Tx) -> Result<Self, Error> {
        // Dropped before the answer, nothing was done since; a savepoint that nobody knows of does no harm.
        tx.settle().await?;
        let number = tx.next_savepoint;
        tx.next_savepoint += 1;
        tx.control_savepoint("SAVEPOINT", number).await?;
        tx.savepoints.push(number);
        let level = tx.savepoints.len();
        Ok(Self { tx, level, ended: false })
    }

    /// Keeps what was done since; the transaction decides on it. Dropping the future undoes it, or, when the server had
    /// released it already, makes the transaction fail.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when a statement in it had failed (25P02): what was done since is undone.
    pub async fn release(mut self) -> Result<(), Error> {
        self.tx.settle().await?;
        let number = self.tx.savepoints[self.level - 1];
        self.tx.control_savepoint("RELEASE SAVEPOINT", number).await?;
        self.tx.keep_from(self.level);
        self.ended = true;
        Ok(())
    }

    /// Undoes what was done since. The transaction goes on, also after a statement in here had failed.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the link was lost: the server then rolls back the whole transaction.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.tx.undo_from(self.level);
        self.ended = true;
        Ok(self.tx.settle().await?)
    }

    /// [`Tx::after_commit`], unless this savepoint is undone.
    pub fn after_commit(&mut self, run: impl FnOnce() + Send + 'static) {
        self.tx.after_commit(run);
    }

    /// [`Tx::unless_rolled_back`], unless this savepoint is undone.
    pub fn unless_rolled_back(&mut self, run: impl FnOnce() + Send + 'static) {
        self.tx.unless_rolled_back(run);
    }

    /// [`Tx::as_sqlx`], inside of this savepoint.
    pub fn as_sqlx(&mut self) -> &mut PgConnection {
        self.tx.as_sqlx()
    }

    /// A savepoint inside of this one.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when a statement had failed before (25P02).
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, Error> {
        Savepoint::begin(self.tx).await
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.tx.undo_from(self.level);
        }
    }
}

impl<'c> Executor<'c> for &'c mut Savepoint<'_> {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.tx.execute(query)
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.tx.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.tx.fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.tx.prepare_with(sql, parameters)
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.tx.describe(sql)
    }
}
