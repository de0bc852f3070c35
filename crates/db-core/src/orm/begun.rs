//! Transactions and savepoints of `SeaORM`.

use std::fmt;
use std::ops::DerefMut;
use std::pin::pin;

use futures_util::future::BoxFuture;
use sea_orm::{DbErr, TransactionError, TransactionOptions};
use sqlx::{AssertSqlSafe, SqlStr};
use tokio::sync::{MappedMutexGuard, MutexGuard};

use super::loan::{Loan, Own, Seat};
use super::{Taken, options};
use crate::deadline::{Deadline, within};
use crate::session::Text;
use crate::statement::Transaction;
use crate::tx::{DroppedScopes, Scope};
use crate::{Error, Session};

/// A transaction of `SeaORM`, or a savepoint in one. [`OrmTx::commit`], [`OrmTx::rollback`] or a drop end it. Its own `begin` makes an `OrmTx`,
/// too.
///
/// An `OrmTx` that is dropped without a commit is undone before the session's next statement, or before the commit of the transaction
/// around it. The same is true if one of its futures is dropped.
///
/// `S` says where the session is: [`Own`] is acquired from a pool, [`Lent`](super::Lent) is borrowed from its owner.
pub struct OrmTx<S: Seat = Own> {
    loan: Loan<S>,
    scope: Scope,
    dropped: DroppedScopes,
    ends: Option<Deadline>,
}

impl<S: Seat> OrmTx<S> {
    /// Begins a transaction on a session, or a savepoint where one is open. A future that is dropped leaves nothing open.
    pub(super) async fn begin(
        loan: &Loan<S>,
        around: Option<&Self>,
        options: TransactionOptions,
    ) -> Result<Self, Error> {
        let mut session = match around {
            Some(around) => around.session_of_its_own().await?,
            None => loan.session().await?,
        };
        session.make_ready().await?;
        let begun = |scope, session: &mut Session| Self {
            loan: loan.clone(),
            scope,
            dropped: session.dropped_scopes(),
            ends: session.state.ends,
        };
        if session.state.transaction == Transaction::None {
            // Created before the first byte is sent, so that a dropped future is undone.
            let mut begun = begun(Scope::Transaction, &mut session);
            session.begin_transaction(&options::of_transaction(options)).await?;
            begun.ends = session.state.ends;
            return Ok(begun);
        }
        let place = session.make_savepoint().await?;
        let begun = begun(Scope::Savepoint(place), &mut session);
        if let Some(sql) = options::of_savepoint(options) {
            session.count(&mut Text::of(sqlx::query(AssertSqlSafe(sql)))).await?;
        }
        Ok(begun)
    }

    /// Commits a transaction. Releases a savepoint: the transaction around it decides on its work.
    ///
    /// If the future is dropped, a savepoint is undone, and a transaction may be committed or not.
    ///
    /// # Errors
    ///
    /// Those of [`Tx::commit`](crate::Tx::commit) and [`Savepoint::release`](crate::Savepoint::release), and an
    /// [`OrmError`](super::OrmError) if the end of an outer `OrmTx` has ended this one.
    pub async fn commit(self) -> Result<(), DbErr> {
        self.finish(async |session, scope| session.release(scope).await).await
    }

    /// Undoes the work since the begin. A transaction around it goes on, even if a statement inside has failed.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the link was lost: the server then rolls back the whole transaction. An
    /// [`OrmError`](super::OrmError) if the end of an outer `OrmTx` has ended this one.
    pub async fn rollback(self) -> Result<(), DbErr> {
        self.finish(async |session, scope| session.roll_back_to(scope).await).await
    }

    async fn finish(
        self,
        end: impl AsyncFnOnce(&mut Session, Scope) -> Result<(), Error>,
    ) -> Result<(), DbErr> {
        let mut seat = self.loan.seat().await?;
        end(self.find(&mut seat)?, self.scope).await?;
        if let Scope::Transaction = self.scope {
            seat.leave();
        }
        Ok(())
    }

    /// The session, for statements of sqlx between those of `SeaORM`, and for [`after_commit`](Session::after_commit) and the like.
    /// Statements of `SeaORM` wait until the returned value is dropped.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] if another statement keeps the session for longer than a statement may take, and an
    /// [`OrmError`](super::OrmError) if the end of an outer `OrmTx` has ended this one.
    pub async fn session(&self) -> Result<impl DerefMut<Target = Session> + Send, Error> {
        self.session_of_its_own().await
    }

    async fn session_of_its_own(&self) -> Result<MappedMutexGuard<'_, Session>, Error> {
        let seat = self.loan.seat().await?;
        MutexGuard::try_map(seat, |seat| self.find(seat).ok()).map_err(|_| self.loan.ended())
    }

    /// The session, if the scope is still open.
    fn find<'a>(&self, seat: &'a mut S) -> Result<&'a mut Session, Error> {
        let session = seat.session().ok_or_else(|| self.loan.ended())?;
        if session.has_scope(self.scope, &self.dropped) { Ok(session) } else { Err(self.loan.ended()) }
    }

    pub(super) async fn take(&self, _statement: &SqlStr) -> Result<Taken<'_>, Error> {
        self.take_to_stream().await
    }

    pub(super) async fn take_to_stream(&self) -> Result<Taken<'_>, Error> {
        Ok(Taken::Lent(self.session_of_its_own().await?))
    }

    pub(super) async fn start(&self, options: TransactionOptions) -> Result<Self, Error> {
        Self::begin(&self.loan, Some(self), options).await
    }

    /// Runs a function in the transaction, at most until its deadline, and ends the transaction.
    pub(super) async fn run<F, T, E>(self, work: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c Self) -> BoxFuture<'c, Result<T, E>>,
    {
        let result = within(self.ends.map(|ends| ends.at.into()), work(&self)).await;
        self.end(result).await
    }

    /// The same for an async function.
    pub(super) async fn run_async<F, T, E>(self, work: F) -> Result<T, TransactionError<E>>
    where
        F: AsyncFnOnce(&Self) -> Result<T, E>,
    {
        let result = within(self.ends.map(|ends| ends.at.into()), pin!(work(&self))).await;
        self.end(result).await
    }

    /// Commits after `Ok`, and undoes after `Err` or a missed deadline, which is `None`.
    async fn end<T, E>(self, result: Option<Result<T, E>>) -> Result<T, TransactionError<E>> {
        match result {
            Some(Ok(value)) => {
                self.commit().await.map_err(TransactionError::Connection)?;
                Ok(value)
            }
            Some(Err(error)) => {
                if let Err(error) = self.rollback().await {
                    // The link is lost, and the server rolls back by itself.
                    tracing::debug!(%error, "roll back after an error failed");
                }
                Err(TransactionError::Transaction(error))
            }
            // Dropping `self` undoes the work.
            None => Err(TransactionError::Connection(self.loan.late(self.ends).into())),
        }
    }
}

impl<S: Seat> Drop for OrmTx<S> {
    fn drop(&mut self) {
        // Undoes nothing after the scope's end.
        self.dropped.add(self.scope);
    }
}

impl<S: Seat> fmt::Debug for OrmTx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrmTx").field("loan", &self.loan).field("scope", &self.scope).finish_non_exhaustive()
    }
}
