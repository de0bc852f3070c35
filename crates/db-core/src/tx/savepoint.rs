//! Savepoints, and nested transactions.

use std::ops::{Deref, DerefMut};

use super::TxOptions;
use super::nesting::Scope;
use crate::statement::Transaction;
use crate::{Error, Session};

/// Nested work that can be undone alone: a savepoint inside a transaction, or a transaction if none is open. It ends with
/// [`Savepoint::release`], [`Savepoint::rollback`] or by being dropped. Statements run on its [`Session`].
///
/// `&mut Savepoint` is a sqlx executor. If it is dropped without a release, its work is undone right before the session's next
/// statement or the transaction's commit, even if its future was dropped at any await. Savepoints may be nested.
#[derive(Debug)]
pub struct Savepoint<'s> {
    session: &'s mut Session,
    /// None once it was released or undone.
    scope: Option<Scope>,
}

impl Session {
    /// Starts nested work that can be undone alone: a savepoint, or a transaction if none is open.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if an earlier statement had failed (25P02).
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, Error> {
        self.make_ready().await?;
        if self.state.transaction == Transaction::None {
            // Created before the first byte is sent, so that a dropped future is undone.
            let savepoint = Savepoint { session: self, scope: Some(Scope::Transaction) };
            savepoint.session.begin_transaction(&TxOptions::default()).await?;
            return Ok(savepoint);
        }
        let place = self.make_savepoint().await?;
        Ok(Savepoint { session: self, scope: Some(Scope::Savepoint(place)) })
    }

    /// Runs `work` as nested work: keeps it if `work` returns `Ok`, and undoes it if `work` returns `Err` or its
    /// future is dropped. A transaction around it continues in both cases. If no transaction is open, `work` runs in one of its own.
    ///
    /// # Errors
    ///
    /// The error of `work` unchanged; the errors of [`savepoint`](Self::savepoint), [`Savepoint::release`] and
    /// [`Savepoint::rollback`].
    pub async fn nested<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Savepoint<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let mut savepoint = self.savepoint().await?;
        match work(&mut savepoint).await {
            Ok(value) => {
                savepoint.release().await?;
                Ok(value)
            }
            Err(error) => {
                savepoint.rollback().await?;
                Err(error)
            }
        }
    }
}

impl Savepoint<'_> {
    /// Keeps the nested work, which is stored when the transaction commits. Dropping the future undoes it. If the nested work is a transaction of its own, it is committed.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if a statement in it had failed (25P02): the nested work is undone. If it is a transaction of its own, the
    /// errors of [`Tx::commit`](crate::Tx::commit).
    pub async fn release(mut self) -> Result<(), Error> {
        if let Some(scope) = self.scope {
            self.session.release(scope).await?;
        }
        self.scope = None;
        Ok(())
    }

    /// Undoes the nested work. The transaction continues, even after a failed statement in the nested work.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the link was lost: the server then rolls back the whole transaction.
    pub async fn rollback(mut self) -> Result<(), Error> {
        if let Some(scope) = self.scope {
            self.session.roll_back_to(scope).await?;
        }
        self.scope = None;
        Ok(())
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if let Some(scope) = self.scope {
            self.session.undo(scope);
        }
    }
}

impl Deref for Savepoint<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session
    }
}

impl DerefMut for Savepoint<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        self.session
    }
}
