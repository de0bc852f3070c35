//! `SeaORM` on the pools, the connections and the transactions of this crate.
//!
//! [`Handle::orm`](crate::Handle::orm) makes an [`Orm`], and [`Session::orm`](crate::Session::orm), so `tx.orm()`, `savepoint.orm()` and
//! `conn.orm()`, an [`OrmSession`]. Both are connections of `SeaORM`: its entities find, insert, save, stream and begin on them. Their
//! statements have the limits, the log, the cancelling and the repairs of all others.
//!
#![doc = include_str!("orm/example.md")]
//!
//! # Transactions
//!
//! `begin` makes an [`OrmTx`]: a savepoint in an open transaction, otherwise a transaction. `commit` and `rollback` end it. An [`OrmTx`] that
//! is dropped, or whose future is dropped, is undone before the session's next statement, or before the commit of the transaction around
//! it. An [`OrmSession`] has neither `commit` nor `rollback`: the owner of the session ends its transaction.
//!
//! Several [`OrmTx`] of one session may be open at the same time. Savepoints are a stack on the server: a later savepoint is inside the
//! earlier one, and a statement of any handle is inside both. The end of the outer savepoint ends the inner one. After that, the inner
//! [`OrmTx`] answers with an [`OrmError`], and ends nothing.
//!
//! A session runs one statement at a time. Another statement waits for its end, or until a stream is dropped, at most for
//! [`statement_timeout`](crate::PoolOptions::statement_timeout). A loop that reads a stream and saves each row on the same transaction
//! waits for itself: it fails with a [`DeadlineError`](crate::DeadlineError).
//!
//! # Errors
//!
//! `?` works both ways. A [`DbErr`](sea_orm::DbErr) becomes an [`Error`](crate::Error) with its class, SQLSTATE and constraint. An
//! [`Error`](crate::Error) becomes a `DbErr`, and the same [`Error`](crate::Error) again on the way back. `DbErr::sql_err` finds
//! constraints.

use std::fmt;
use std::ops::{Deref, DerefMut};

use async_stream::try_stream;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{TryFutureExt, TryStreamExt};
use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, FromQueryResult,
    IsolationLevel, QueryResult, QueryTrait, SqlxPostgresConnector, Statement, StreamTrait, TransactionError,
    TransactionOptions, TransactionSession, TransactionTrait,
};
use sqlx::SqlStr;
use tokio::sync::MappedMutexGuard;

use crate::call_site::CallSite;
use crate::{Conn, Error, Handle, Pool, Session};

mod begun;
mod error;
mod loan;
mod options;
mod statement;

pub use begun::OrmTx;
pub use error::OrmError;
pub use loan::{Lent, Own};

use error::{executing, querying};
use loan::{Loan, Seat};

/// A pool as a connection of `SeaORM`, made by [`Handle::orm`]. See the [module](self).
#[derive(Debug, Clone)]
pub struct Orm(Handle);

/// A [`Session`] as a connection of `SeaORM`, made by [`Session::orm`]. See the [module](self).
///
/// In a future that must be `Send`, such as a handler's, the compiler refuses `StreamTrait` on a type that borrows ("implementation of
/// `StreamTrait` is not general enough"). Use [`stream_as`](Self::stream_as) there.
#[derive(Debug, Clone)]
pub struct OrmSession<'s>(Loan<Lent<'s>>);

impl Handle {
    /// The pool as a connection of `SeaORM`. Each statement acquires a connection, and `begin` acquires one for its transaction.
    ///
    /// Holders, errors and the log name the line of this call.
    #[must_use]
    #[track_caller]
    pub fn orm(&self) -> Orm {
        Orm(self.at(CallSite::caller()))
    }
}

impl Session {
    /// The session as a connection of `SeaORM`. In an open transaction, `begin` makes a savepoint; otherwise it begins a transaction.
    ///
    /// The session is borrowed until the last use of this value, of its [`OrmTx`] and of its streams. For statements of sqlx in between,
    /// use [`OrmTx::session`].
    #[must_use]
    #[track_caller]
    pub fn orm(&mut self) -> OrmSession<'_> {
        OrmSession(Loan::of(self, CallSite::caller()))
    }
}

impl Pool {
    /// `SeaORM`'s own pool over the connections of [`Pool::sqlx`], for code that needs a `&DatabaseConnection`. This pool does not log,
    /// limit or cancel its statements, [holders](Pool::holders) do not show them, and they share no transaction with this pool's. Give
    /// [`Handle::orm`] to code that takes any `ConnectionTrait`.
    ///
    /// `DatabaseConnection::close` also closes the pool that [`Pool::sqlx`] returns, for good.
    #[must_use]
    pub fn sea_orm(&self) -> DatabaseConnection {
        SqlxPostgresConnector::from_sqlx_postgres_pool(self.sqlx().clone())
    }
}

/// The session that a statement is sent on.
enum Taken<'a> {
    Conn(Conn),
    Lent(MappedMutexGuard<'a, Session>),
}

impl Deref for Taken<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        match self {
            Self::Conn(conn) => conn,
            Self::Lent(session) => session,
        }
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        match self {
            Self::Conn(conn) => conn,
            Self::Lent(session) => session,
        }
    }
}

impl Orm {
    /// The session for one statement.
    async fn take(&self, statement: &SqlStr) -> Result<Taken<'_>, Error> {
        Ok(Taken::Conn(self.0.clone().acquire_for(statement).await?))
    }

    /// The session for a statement whose rows are read one by one.
    async fn take_to_stream(&self) -> Result<Taken<'_>, Error> {
        Ok(Taken::Conn(self.0.acquire().await?))
    }

    async fn start(&self, options: TransactionOptions) -> Result<OrmTx, Error> {
        OrmTx::begin(&Loan::of_conn(self.0.acquire().await?), None, options).await
    }
}

impl<'s> OrmSession<'s> {
    async fn take(&self, _statement: &SqlStr) -> Result<Taken<'_>, Error> {
        self.take_to_stream().await
    }

    async fn take_to_stream(&self) -> Result<Taken<'_>, Error> {
        Ok(Taken::Lent(self.0.session().await?))
    }

    async fn start(&self, options: TransactionOptions) -> Result<OrmTx<Lent<'s>>, Error> {
        OrmTx::begin(&self.0, None, options).await
    }
}

/// Implements `SeaORM`'s traits. The type has `take`, `take_to_stream` and `start`.
macro_rules! connection {
    ($connection:ty, $begun:ty $(, $lifetime:lifetime)?) => {
        #[async_trait]
        impl $(<$lifetime>)? ConnectionTrait for $connection {
            fn get_database_backend(&self) -> DbBackend {
                DbBackend::Postgres
            }

            async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
                let mut text = statement::bound(statement)?;
                let mut session = self.take(text.sql_str()).await?;
                Ok(session.count(&mut text).await.map_err(executing)?.into())
            }

            async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
                let mut text = statement::raw(sql);
                let mut session = self.take(text.sql_str()).await?;
                Ok(session.count(&mut text).await.map_err(executing)?.into())
            }

            async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
                let mut text = statement::bound(statement)?;
                let mut session = self.take(text.sql_str()).await?;
                Ok(session.optional(&mut text).await.map_err(querying)?.map(QueryResult::from))
            }

            async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
                let text = statement::bound(statement)?;
                let mut session = self.take_to_stream().await?;
                let mut results = session.many(text);
                let mut rows = Vec::new();
                while let Some(result) = results.try_next().await.map_err(querying)? {
                    rows.extend(result.right().map(QueryResult::from));
                }
                Ok(rows)
            }
        }

        impl $(<$lifetime>)? StreamTrait for $connection {
            type Stream<'a>
                = BoxStream<'a, Result<QueryResult, DbErr>>
            where
                Self: 'a;

            fn get_database_backend(&self) -> DbBackend {
                DbBackend::Postgres
            }

            fn stream_raw<'a>(
                &'a self,
                statement: Statement,
            ) -> BoxFuture<'a, Result<Self::Stream<'a>, DbErr>> {
                Box::pin(async move {
                    let text = statement::bound(statement)?;
                    let mut session = self.take_to_stream().await?;
                    let rows: Self::Stream<'a> = Box::pin(try_stream! {
                        let mut results = session.many(text);
                        while let Some(result) = results.try_next().await.map_err(querying)? {
                            if let Some(row) = result.right() {
                                yield QueryResult::from(row);
                            }
                        }
                    });
                    Ok(rows)
                })
            }
        }

        #[async_trait]
        impl $(<$lifetime>)? TransactionTrait for $connection {
            type Transaction = $begun;

            async fn begin(&self) -> Result<$begun, DbErr> {
                self.begin_with_options(TransactionOptions::default()).await
            }

            async fn begin_with_config(
                &self,
                isolation_level: Option<IsolationLevel>,
                access_mode: Option<AccessMode>,
            ) -> Result<$begun, DbErr> {
                self.begin_with_options(with(isolation_level, access_mode)).await
            }

            async fn begin_with_options(&self, options: TransactionOptions) -> Result<$begun, DbErr> {
                Ok(self.start(options).await?)
            }

            async fn transaction<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(&'c $begun) -> BoxFuture<'c, Result<T, E>> + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                self.transaction_with_config(callback, None, None).await
            }

            async fn transaction_with_config<F, T, E>(
                &self,
                callback: F,
                isolation_level: Option<IsolationLevel>,
                access_mode: Option<AccessMode>,
            ) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(&'c $begun) -> BoxFuture<'c, Result<T, E>> + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                let begun = self.begin_with_config(isolation_level, access_mode).await;
                let tx = begun.map_err(TransactionError::Connection)?;
                tx.run(callback).await
            }
        }
    };
}

connection!(Orm, OrmTx);
connection!(OrmTx, OrmTx);
connection!(OrmSession<'s>, OrmTx<Lent<'s>>, 's);
connection!(OrmTx<Lent<'s>>, OrmTx<Lent<'s>>, 's);

/// The form of `transaction` that takes an async closure, which `SeaORM`'s types have beside their traits. Types that borrow a session do
/// not have this form: no future with such a closure would be `Send`.
macro_rules! transaction_async {
    ($connection:ty) => {
        impl $connection {
            /// Begins a transaction, or a savepoint in an open transaction, and runs `callback` in it. Commits if `callback` returns `Ok`.
            /// Undoes the work if `callback` returns `Err`, if it takes longer than the pool's
            /// [`tx_timeout`](crate::PoolOptions::tx_timeout), or if the future is dropped.
            ///
            /// # Errors
            ///
            /// [`TransactionError::Transaction`] has the error of `callback`, [`TransactionError::Connection`] the error of the begin or the
            /// commit.
            pub async fn transaction_async<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
            where
                F: AsyncFnOnce(&OrmTx) -> Result<T, E>,
                E: std::error::Error,
            {
                let begun = self.begin().await;
                begun.map_err(TransactionError::Connection)?.run_async(callback).await
            }
        }
    };
}

transaction_async!(Orm);
transaction_async!(OrmTx);

/// A form of `StreamTrait` for futures that must be `Send`.
macro_rules! stream_as {
    ($connection:ty) => {
        impl $connection {
            /// The rows of a `Select` or its like, one by one, each as an `M`.
            ///
            /// Dropping the stream abandons its statement. In a transaction, the next statement first waits for its end.
            pub fn stream_as<M: FromQueryResult + Send>(
                &self,
                select: &impl QueryTrait,
            ) -> BoxStream<'_, Result<M, DbErr>> {
                let statement = select.build(DbBackend::Postgres);
                let rows = async move { self.stream_raw(statement).await };
                Box::pin(rows.try_flatten_stream().and_then(async |row| M::from_query_result(&row, "")))
            }
        }
    };
}

stream_as!(OrmSession<'_>);
stream_as!(OrmTx<Lent<'_>>);

#[async_trait]
impl<S: Seat> TransactionSession for OrmTx<S> {
    async fn commit(self) -> Result<(), DbErr> {
        Ok(OrmTx::commit(self).await?)
    }

    async fn rollback(self) -> Result<(), DbErr> {
        Ok(OrmTx::rollback(self).await?)
    }
}

fn with(isolation_level: Option<IsolationLevel>, access_mode: Option<AccessMode>) -> TransactionOptions {
    TransactionOptions { isolation_level, access_mode, sqlite_transaction_mode: None }
}
