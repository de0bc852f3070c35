//! A log's only writer.

use db_core::Tx;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::statement::{Attempt, Batch, Outcome, append};
use crate::limits::{LONGEST_APPEND_PAUSE, pauses};
use crate::{Error, EventLogs, LogId, NewEvent, WriterId};

/// The only writer of a log. It knows where the log ends, and notices if another writer appends: [`Error::Conflict`].
///
/// Each batch is stored exactly once, whatever happens to the connection: it is sent again until there is an answer, even while
/// the database is away.
///
/// If a future is dropped, its batch may be stored or not. Append the same events again, and they are stored once; other events
/// are refused with [`Error::SequenceReused`] if the first ones were stored.
#[derive(Debug)]
pub struct Writer {
    events: EventLogs,
    log: LogId,
    id: WriterId,
    last: i64,
}

impl Writer {
    pub(crate) fn new(events: EventLogs, log: LogId, last: i64) -> Self {
        Self { events, log, id: WriterId::random(), last }
    }

    /// The last event that is known to be stored, 0 for none.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.last
    }

    /// Appends a batch.
    ///
    /// # Errors
    ///
    /// [`Error::Finished`] or [`Error::Conflict`] if another writer has appended to the log: nothing of the batch is stored.
    /// Other errors that a later attempt would return, too.
    pub async fn append(&mut self, events: &[NewEvent]) -> Result<(), Error> {
        let batch = self.batch(events, false)?;
        self.last = *self.events.store(self.log, Some(self.last), &batch).await?.end();
        Ok(())
    }

    /// Appends the last batch.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    pub async fn finish(self, events: &[NewEvent]) -> Result<(), Error> {
        let batch = self.batch(events, true)?;
        self.events.store(self.log, Some(self.last), &batch).await.map(drop)
    }

    /// Appends the last batch and runs `also` in the same transaction, for example to write the result into the row that the
    /// log belongs to. If the transaction fails, both are done again in a new one. The batch is appended first: if an earlier
    /// transaction proves to be committed, `also` does not run again.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`]; and the error of `also`, unless a later attempt may succeed.
    pub async fn finish_with<F>(self, events: &[NewEvent], also: F) -> Result<(), Error>
    where
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<(), db_core::Error>> + Sync,
    {
        let batch = self.batch(events, true)?;
        let mut backoff = pauses(LONGEST_APPEND_PAUSE);
        loop {
            match self.finish_in_tx(&batch, &also).await {
                Ok(true) => return Ok(()),
                // The other writer has committed: the next attempt sees what it has stored.
                Ok(false) => {}
                Err(error) if error.may_recover() => {
                    tracing::warn!(log = %self.log, %error, "the transaction that finishes the log failed, will be repeated");
                    sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One attempt. Returns whether the batch is stored.
    async fn finish_in_tx<F>(&self, batch: &Batch<'_>, also: &F) -> Result<bool, Error>
    where
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<(), db_core::Error>> + Sync,
    {
        let mut tx = self.events.handle().begin().await?;
        match append(&mut tx, self.log, Some(self.last), batch, Attempt::AtOnce).await? {
            Outcome::Stored(_) => {
                self.events.wake_after(&mut tx, self.log);
                also(&mut tx).await?;
                tx.commit().await?;
                Ok(true)
            }
            Outcome::SequenceUsed(ids) => {
                batch.recognize(&mut tx, self.log, ids).await?;
                // The answer to an earlier commit was lost, and with it, perhaps, the notification.
                self.events.wake(self.log);
                tx.rollback().await?;
                Ok(true)
            }
            Outcome::Raced => {
                tx.rollback().await?;
                Ok(false)
            }
        }
    }

    /// The batch after the last event that is known to be stored. That event is its sequence number: one batch can follow it.
    fn batch<'e>(&self, events: &'e [NewEvent], finishes: bool) -> Result<Batch<'e>, Error> {
        Ok(Batch::new(events, finishes)?.of(self.id, self.last))
    }
}
