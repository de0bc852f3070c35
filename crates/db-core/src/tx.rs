//! A transaction.

use std::ops::{Deref, DerefMut};

use crate::{Error, Session};

#[cfg(feature = "sea-orm")]
mod dropped;
mod end;
mod nesting;
mod options;
mod resolve;
mod savepoint;

pub use options::{Isolation, TxOptions};
pub use savepoint::Savepoint;

pub(crate) use nesting::Nesting;
#[cfg(feature = "sea-orm")]
pub(crate) use {dropped::DroppedScopes, nesting::Scope};

use resolve::Outcome;

/// An open transaction, which ends with [`Tx::commit`], [`Tx::rollback`] or by being dropped. Statements run on its [`Session`].
///
/// `&mut Tx` is a sqlx executor. A transaction that is dropped without a commit is rolled back in the background, even if its future
/// was dropped at any await; [`Handle::tx`](crate::Handle::tx) commits or rolls back by itself.
///
/// An abandoned statement in the transaction, such as a stream that was not read to its end, is read to its end before the next
/// statement, as sqlx does. After 5 s it is cancelled: the next statement, or the commit, then fails with [`Error::Deadline`]. A
/// rollback of the transaction or of a savepoint around the statement cancels it at once.
///
/// This crate sends `BEGIN` and `COMMIT` itself and does not use sqlx's `Transaction`: in sqlx 0.9.0 a `begin` whose future is dropped
/// leaves a transaction open on a connection that returns to its pool.
#[derive(Debug)]
pub struct Tx {
    session: Session,
}

impl Tx {
    pub(crate) async fn begin(mut session: Session, options: TxOptions) -> Result<Self, Error> {
        session.begin_transaction(&options).await?;
        if options.resolves_commit {
            session.nesting().resolves_commit = true;
        }
        Ok(Self { session })
    }

    /// Commits. The connection is returned to its pool, and the hooks of [`Session::after_commit`] and
    /// [`Session::unless_rolled_back`] run.
    ///
    /// Dropping the future leaves the outcome unknown to the caller: the whole transaction is committed, or nothing of it. The
    /// answer is then read in the background, and the hooks run accordingly.
    ///
    /// # Errors
    ///
    /// * [`Error::Aborted`] if a statement in the transaction had failed: nothing is stored. (The server itself answers such a `COMMIT`
    ///   without an error.)
    /// * [`Error::Statement`] if the server refused the commit, for example because of a deferred constraint: nothing is stored.
    /// * [`Error::Lent`] if [`Session::as_sqlx`] left the session in a state in which its answers cannot be trusted: the commit was not
    ///   sent, and nothing is stored.
    /// * [`Error::Deadline`] if the transaction was open for too long, or an abandoned statement in it did not end: nothing is stored.
    /// * [`Error::CommitUnknown`] if the link was lost during the commit, or the session ended with an error. With
    ///   [`TxOptions::resolve_commit`], this is success or [`Error::RolledBack`] instead, once the server can tell.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.session.get_ready_to_commit().await?;
        if !self.session.resolves_commit() {
            return self.session.send_commit().await;
        }
        let number = resolve::number(&mut self.session).await?;
        let error = match self.session.try_commit().await {
            Err(Error::CommitUnknown(error)) => error,
            result => return result,
        };
        let mut hooks = std::mem::take(&mut self.session.state.pending_hooks);
        match resolve::outcome(self.session, number.as_deref()).await {
            Outcome::Committed => {
                hooks.committed();
                Ok(())
            }
            Outcome::RolledBack => {
                hooks.clear();
                Err(Error::RolledBack(error))
            }
            Outcome::Unknown => Err(Error::CommitUnknown(error)),
        }
    }

    /// Rolls back. The connection is returned to its pool.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the link was lost: the server then rolls back by itself.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.session.roll_back().await
    }
}

impl Deref for Tx {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
