//! Parts of a transaction that can be undone alone.

use std::ops::{Deref, DerefMut};

use super::TxOptions;
use super::nesting::Place;
use crate::statement::Transaction;
use crate::{Error, Session};

/// A part that can be undone alone: a savepoint in a transaction, or a transaction where none is open. It ends with
/// [`Savepoint::release`], [`Savepoint::rollback`] or by being dropped. What runs in it is a [`Session`].
///
/// `&mut Savepoint` is a sqlx executor. Dropped without a release, what was done since is undone, right before the
/// session's next statement or the transaction's commit, wherever its future was cut off. Savepoints may be made inside of one.
#[derive(Debug)]
pub struct Savepoint<'s> {
    session: &'s mut Session,
    part: Part,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    /// The transaction itself.
    Whole,
    Savepoint(Place),
    /// It was released or undone.
    Ended,
}

impl Session {
    /// Begins a part that can be undone alone: a savepoint, or a transaction where none is open.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when a statement had failed before (25P02).
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, Error> {
        self.make_ready().await?;
        if self.state.transaction == Transaction::None {
            // Before the first byte is sent, so that what is cut off is undone.
            let savepoint = Savepoint { session: self, part: Part::Whole };
            savepoint.session.begin_transaction(&TxOptions::default()).await?;
            return Ok(savepoint);
        }
        let place = self.make_savepoint().await?;
        Ok(Savepoint { session: self, part: Part::Savepoint(place) })
    }

    /// Runs `work` as a part that can be undone alone: kept when it returns `Ok`, undone when it returns `Err` or its
    /// future is dropped. A transaction around it goes on either way. Where no transaction is open, `work` is one.
    ///
    /// # Errors
    ///
    /// The error of `work` as it is; else what [`savepoint`](Self::savepoint), [`Savepoint::release`] and
    /// [`Savepoint::rollback`] say.
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
    /// Keeps what was done since; the transaction decides on it. Dropping the future undoes it, or, when the server had
    /// released it already, makes the transaction fail. Where the part is a transaction, commits it.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when a statement in it had failed (25P02): what was done since is undone. Where the part is a
    /// transaction, what [`Tx::commit`](crate::Tx::commit) says.
    pub async fn release(mut self) -> Result<(), Error> {
        match self.part {
            Part::Whole => {
                self.session.get_ready_to_commit().await?;
                self.session.send_commit().await?;
            }
            Part::Savepoint(place) => self.session.release_savepoint(place).await?,
            Part::Ended => {}
        }
        self.part = Part::Ended;
        Ok(())
    }

    /// Undoes what was done since. The transaction goes on, also after a statement in here had failed.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the link was lost: the server then rolls back the whole transaction.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.undo();
        Ok(self.session.settle().await?)
    }

    fn undo(&mut self) {
        match self.part {
            Part::Whole => self.session.undo_transaction(),
            Part::Savepoint(place) => self.session.undo_from(place),
            Part::Ended => {}
        }
        self.part = Part::Ended;
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        self.undo();
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
