//! A log's only writer.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use db_core::Tx;
use futures_util::future::BoxFuture;

use crate::append::{Attempt, Batch, Outcome, append};
use crate::{Error, EventLogs, LogId, NewEvent};

/// The only writer of a log. It knows where the log ends, so it can repeat an append of which nobody knows whether it
/// was stored: each batch is stored exactly once, whatever happens to the connection meanwhile.
///
/// It waits for a database that is away for as long as it takes. Dropping a future leaves its batch stored or not, and
/// the writer not knowing; drop the writer then, too.
#[derive(Debug)]
pub struct Writer {
    events: EventLogs,
    log: LogId,
    last: i64,
}

impl Writer {
    pub(crate) fn new(events: EventLogs, log: LogId, last: i64) -> Self {
        Self { events, log, last }
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
    /// [`Error::Finished`] or [`Error::Conflict`] when somebody else wrote to the log: nothing of the batch is stored.
    /// Else what waiting cannot mend.
    pub async fn append(&mut self, events: &[NewEvent]) -> Result<(), Error> {
        self.store(&Batch::new(events, false)?).await
    }

    /// Appends the last batch.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    pub async fn finish(mut self, events: &[NewEvent]) -> Result<(), Error> {
        self.store(&Batch::new(events, true)?).await
    }

    /// Appends the last batch and does something else in the same transaction, such as writing the result into the row
    /// that the log belongs to. `also` may run more than once, each time in a new transaction.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`]; and the error of `also`, unless waiting may mend it.
    pub async fn finish_with<F>(mut self, events: &[NewEvent], also: F) -> Result<(), Error>
    where
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<(), db_core::Error>> + Sync,
    {
        let batch = Batch::new(events, true)?;
        let mut attempts = Attempts::default();
        loop {
            let result = self.attempt_with(&batch, &also).await;
            if attempts.settle(&mut self, &batch, result).await? {
                return Ok(());
            }
        }
    }

    async fn store(&mut self, batch: &Batch<'_>) -> Result<(), Error> {
        let mut attempts = Attempts::default();
        loop {
            let result = self.events.append_batch(self.log, Some(self.last), batch).await.map(drop);
            if attempts.settle(self, batch, result).await? {
                return Ok(());
            }
        }
    }

    async fn attempt_with<F>(&self, batch: &Batch<'_>, also: &F) -> Result<(), Error>
    where
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<(), db_core::Error>> + Sync,
    {
        loop {
            let mut tx = self.events.handle().begin().await?;
            also(&mut tx).await?;
            match append(&mut tx, self.log, Some(self.last), batch, Attempt::AtOnce).await? {
                Outcome::Stored(_) => {
                    // Also when nobody hears whether it is committed.
                    self.events.wake_after(&mut tx, self.log);
                    tx.commit().await?;
                    return Ok(());
                }
                // The writer's batches have no number.
                Outcome::Raced | Outcome::SequenceReused(_) => tx.rollback().await?,
            }
        }
    }
}

/// What is known of the attempts to store one batch.
#[derive(Default)]
struct Attempts {
    may_be_stored: bool,
    pauses: Option<ExponentialBackoff>,
}

impl Attempts {
    /// Whether the batch is stored; when it is not, and may be tried again, after a pause.
    async fn settle(
        &mut self,
        writer: &mut Writer,
        batch: &Batch<'_>,
        result: Result<(), Error>,
    ) -> Result<bool, Error> {
        let end = writer.last + batch.len();
        match result {
            Ok(()) => {}
            Err(error @ (Error::Conflict { last, .. } | Error::Finished { last, .. }))
                if self.may_be_stored && last == end =>
            {
                match batch.is_stored(writer.events.handle(), writer.log, writer.last).await {
                    // Only the answer was lost; and so, maybe, was the notification.
                    Ok(true) => writer.events.wake(writer.log),
                    Ok(false) => return Err(error),
                    Err(error) if error.may_be_mended() => return self.pause(writer, &error).await,
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.may_be_mended() => {
                self.may_be_stored |= error.is_ambiguous();
                return self.pause(writer, &error).await;
            }
            Err(error) => return Err(error),
        }
        writer.last = end;
        Ok(true)
    }

    /// Waits until it is worth another try.
    async fn pause(&mut self, writer: &Writer, error: &Error) -> Result<bool, Error> {
        tracing::warn!(log = %writer.log, %error, "append not done yet");
        let pauses = self.pauses.get_or_insert_with(|| {
            ExponentialBuilder::new()
                .with_min_delay(Duration::from_millis(20))
                .with_max_delay(Duration::from_secs(1))
                .with_jitter()
                .without_max_times()
                .build()
        });
        tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(1))).await;
        Ok(false)
    }
}
