//! A transaction.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, Postgres, SqlStr};

use crate::error::StatementError;
use crate::statement::{Transaction, flagged};
use crate::{Class, Conn, Error};

/// "Current transaction is aborted, commands ignored until end of transaction block."
const ABORTED: &str = "25P02";

/// An open transaction, which ends with [`Tx::commit`], [`Tx::rollback`] or by being dropped.
///
/// `&mut Tx` is a sqlx executor. Dropped without a commit, the transaction is rolled back by closing its connection,
/// wherever its future was cut off; [`Handle::tx`](crate::Handle::tx) is the form that cannot forget the end.
///
/// `BEGIN` and `COMMIT` are sent by us and not by sqlx's `Transaction`: in sqlx 0.9.0 a `begin` whose future is dropped
/// leaves a transaction open on a connection that goes back to its pool.
#[derive(Debug)]
pub struct Tx {
    conn: Conn,
}

impl Tx {
    pub(crate) async fn begin(mut conn: Conn) -> Result<Self, Error> {
        // Before the first byte is sent: from here on the server may have a transaction open.
        conn.state.transaction = Transaction::Open;
        let mut tx = Self { conn };
        tx.control("BEGIN").await?;
        Ok(tx)
    }

    /// Commits. The connection goes back to its pool.
    ///
    /// Dropping the future closes the connection, and the transaction is then committed or not: nobody has read the
    /// answer.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when a statement in the transaction had failed: nothing of it is stored, although the server
    /// itself answers such a `COMMIT` without an error. [`Error::CommitUnknown`] when the link was lost on the way.
    /// [`Error::Statement`] when the server refused, for example a deferred constraint: nothing is stored.
    pub async fn commit(mut self) -> Result<(), Error> {
        if self.conn.state.foreign && self.conn.state.transaction == Transaction::Open {
            self.ask().await?;
        }
        if self.conn.state.transaction == Transaction::Aborted {
            self.rollback().await?;
            return Err(Error::Aborted);
        }
        match self.control("COMMIT").await {
            Ok(()) => {
                self.conn.state.transaction = Transaction::None;
                Ok(())
            }
            Err(error) if error.as_database_error().is_some() && Class::of(&error) != Class::Lost => {
                Err(Error::from(error))
            }
            Err(error) => Err(Error::CommitUnknown(StatementError(error))),
        }
    }

    /// Rolls back. The connection goes back to its pool.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the link was lost: the server then rolls back by itself.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.control("ROLLBACK").await?;
        self.conn.state.transaction = Transaction::None;
        Ok(())
    }

    /// sqlx's own connection inside the transaction, for code that insists on it. The connection is closed after the
    /// transaction's end instead of given back: nothing is known of what was done with it.
    pub fn as_sqlx(&mut self) -> &mut PgConnection {
        self.conn.as_sqlx()
    }

    /// Finds out whether the transaction is aborted, where we did not see every statement: the server answers the commit
    /// of one that is without an error.
    async fn ask(&mut self) -> Result<(), Error> {
        match self.control("SELECT").await {
            Err(error)
                if error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(ABORTED) =>
            {
                self.conn.state.transaction = Transaction::Aborted;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Runs transaction control by the simple protocol: one round trip, nothing prepared.
    async fn control(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        let (raw, state) = self.conn.parts();
        flagged(state, raw.execute(sqlx::raw_sql(statement))).await.map(drop)
    }
}

impl<'c> Executor<'c> for &'c mut Tx {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.conn.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.conn.fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.conn.prepare_with(sql, parameters)
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.conn.describe(sql)
    }
}
