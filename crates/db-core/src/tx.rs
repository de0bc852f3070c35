//! A transaction.

use std::ops::{Deref, DerefMut};

use crate::{Error, Session};

mod end;
mod nesting;
mod options;
mod resolve;
mod savepoint;

pub use options::{Isolation, TxOptions};
pub use savepoint::Savepoint;

pub(crate) use end::refuses;
pub(crate) use nesting::Nesting;

use resolve::Outcome;

/// An open transaction, which ends with [`Tx::commit`], [`Tx::rollback`] or by being dropped. What runs in it is a [`Session`].
///
/// `&mut Tx` is a sqlx executor. Dropped without a commit, the transaction is rolled back in the background, wherever its
/// future was cut off; [`Handle::tx`](crate::Handle::tx) is the form that cannot forget the end.
///
/// What was cut off in it, such as the rest of a stream, is read to its end before the next statement, as sqlx does. If that takes
/// longer than 5 s, it is cancelled: the next statement, or the commit, then fails with [`Error::Deadline`] and says so. A
/// rollback, and that of a savepoint around it, cancels it at once.
///
/// `BEGIN` and `COMMIT` are sent by us and not by sqlx's `Transaction`: in sqlx 0.9.0 a `begin` whose future is dropped
/// leaves a transaction open on a connection that goes back to its pool.
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

    /// Commits. The connection goes back to its pool, and what [`Session::after_commit`] and [`Session::unless_rolled_back`] were
    /// given runs.
    ///
    /// Dropping the future leaves it open whether the transaction is committed or not: nobody has read the answer. All of
    /// it is, or nothing. The answer is then read in the background, and what was given runs as it says.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when a statement in the transaction had failed: nothing of it is stored, although the server
    /// itself answers such a `COMMIT` without an error. [`Error::Statement`] when the server refused, for example a
    /// deferred constraint: nothing is stored. [`Error::Lent`] when the session came back from [`Session::as_sqlx`] in a state in
    /// which its answers cannot be believed: the commit was not sent, and nothing is stored. [`Error::Deadline`] when it was open
    /// for too long, or when what was cut off in it did not end: nothing is stored. [`Error::CommitUnknown`] when the link was
    /// lost on the way, or the session ended with an error; with [`TxOptions::resolve_commit`], this is success or
    /// [`Error::RolledBack`] instead, as soon as the server can tell.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.session.get_ready_to_commit().await?;
        if !self.session.resolves_commit() {
            return self.session.send_commit().await;
        }
        let number = resolve::number(&mut self.session).await?;
        let error = match self.session.try_commit().await {
            Err(Error::CommitUnknown(error)) => error,
            known => return known,
        };
        let mut doubt = std::mem::take(&mut self.session.state.doubt);
        match resolve::outcome(self.session, number.as_deref()).await {
            Outcome::Committed => {
                doubt.committed();
                Ok(())
            }
            Outcome::RolledBack => {
                doubt.forget();
                Err(Error::RolledBack(error))
            }
            Outcome::Unknown => Err(Error::CommitUnknown(error)),
        }
    }

    /// Rolls back. The connection goes back to its pool.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the link was lost: the server then rolls back by itself.
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
