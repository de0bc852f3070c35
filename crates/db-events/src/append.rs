//! Appending to a log: alone, in a transaction, or again after a lost answer.

mod appender;
mod statement;
mod writer;

use std::ops::RangeInclusive;

use db_core::Session;
use tokio::time::sleep;

pub use appender::Appender;
pub use writer::Writer;

use crate::limits::{LONGEST_APPEND_PAUSE, pauses};
use crate::{Error, EventLogs, LogId, NewEvent, WriterId};
use statement::{Attempt, Batch, Outcome, WHAT, append};

impl EventLogs {
    /// Appends events after the last event of a log, all of them or none. Returns their ids.
    ///
    /// One statement and one round trip. If another writer has appended meanwhile, the statement is sent again. If the future
    /// is dropped, either all of the events are stored or none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Finished`], and the errors for events that cannot be stored: nothing is stored. After
    /// [`Error::TimedOut`], a lost connection or a limit of the pool's, the events may be stored or not: use
    /// [`append_once`](Self::append_once), a [`Writer`] or an [`Appender`] if they must be stored once.
    pub async fn append(&self, log: LogId, events: &[NewEvent]) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, false)?).await
    }

    /// Appends events in a transaction: they are stored when it commits, and not if it rolls back. Returns the ids that they have
    /// if it commits. The followers of the log are woken after the commit, also when its answer was lost. `db` is a
    /// [`Tx`](db_core::Tx), a savepoint, or what a helper function takes for either.
    ///
    /// ```no_run
    /// # async fn run(db: db_core::Pool, events: db_events::EventLogs) -> Result<(), db_events::Error> {
    /// use db_events::NewEvent;
    ///
    /// # let db = db.handle();
    /// db.tx(async |tx| {
    ///     sqlx::query("insert into orders (item) values ('tea')").execute(&mut *tx).await?;
    ///     let log = events.create_in(tx).await?;
    ///     events.append_in(tx, log, &[NewEvent::new("ordered", "tea")]).await?;
    ///     Ok::<_, db_events::Error>(())
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// **Append last.** Until the transaction ends, every other writer of the log waits: for at most 30 s or the limit of its
    /// pool, then its append fails and stores nothing. So do other work before the append.
    ///
    /// **Append to two logs in the order of their ids.** Two transactions that append to the same two logs in opposite orders
    /// wait for each other. The server ends one of them with a deadlock (SQLSTATE 40P01), after 1 s by default.
    ///
    /// In a transaction that keeps its snapshot (`repeatable read`, `serializable`), an append that loses a race against another
    /// writer fails with SQLSTATE 40001, and the transaction with it: use `tx_retry`. In the default isolation the append is
    /// repeated in the transaction.
    ///
    /// If the future is dropped, the events may be part of the transaction.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append). After [`Error::UnknownLog`], [`Error::Finished`] and the errors for events that cannot be
    /// stored, the transaction can go on.
    pub async fn append_in(
        &self,
        db: &mut Session,
        log: LogId,
        events: &[NewEvent],
    ) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch_in(db, log, &Batch::new(events, false)?).await
    }

    /// Appends a batch that may have been sent before, such as one whose answer was lost: however often the same events are sent
    /// under the same sequence number of a writer, they are stored once, and their ids are returned.
    ///
    /// A batch that was [trimmed](Self::trim) away is forgotten: sent again, it is stored again.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append). If it is unknown whether the batch is stored, send it again. [`Error::SequenceReused`] if other
    /// events are stored under the writer's sequence number.
    pub async fn append_once(
        &self,
        log: LogId,
        (writer, sequence): (WriterId, i64),
        events: &[NewEvent],
    ) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, false)?.of(writer, sequence)).await
    }

    /// Appends the last events of a log, at least one. Nothing can be appended afterwards, and streams of the log end.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    pub async fn finish(&self, log: LogId, events: &[NewEvent]) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, true)?).await
    }

    /// Appends the last events of a log in a transaction. See [`append_in`](Self::append_in).
    ///
    /// # Errors
    ///
    /// As [`append_in`](Self::append_in).
    pub async fn finish_in(
        &self,
        db: &mut Session,
        log: LogId,
        events: &[NewEvent],
    ) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch_in(db, log, &Batch::new(events, true)?).await
    }

    /// A writer that knows where the log ends because no other writer appends to the log. `last` is the log's last event, 0 for a
    /// new log.
    #[must_use]
    pub fn writer(&self, log: LogId, last: i64) -> Writer {
        Writer::new(self.clone(), log, last)
    }

    /// An appender, which gathers events that come one by one into batches. Its task ends with its last handle.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn appender(&self, log: LogId) -> Appender {
        Appender::new(self.clone(), log)
    }

    /// Appends a batch after event `after` if that is given, else after the last one.
    async fn append_batch(
        &self,
        log: LogId,
        after: Option<i64>,
        batch: &Batch<'_>,
    ) -> Result<RangeInclusive<i64>, Error> {
        let mut attempt = Attempt::AtOnce;
        loop {
            // Acquired here, so that the wait for a connection has the pool's limit and the statement its own.
            let mut conn = self
                .handle()
                .acquire()
                .await
                .map_err(|error| Error::Database { what: WHAT, cause: error.into() })?;
            // If this future is dropped, the batch may be stored all the same.
            let events = self.clone();
            conn.if_abandoned(move || events.wake(log));
            match append(&mut conn, log, after, batch, attempt).await {
                Ok(Outcome::Stored(ids)) => {
                    self.wake(log);
                    return Ok(ids);
                }
                Ok(Outcome::SequenceUsed(ids)) => {
                    let ids = batch.recognize(&mut conn, log, ids).await?;
                    // The answer was lost, and with it, perhaps, the notification.
                    self.wake(log);
                    return Ok(ids);
                }
                // The other writer has committed, so this loop ends: in each round, some writer stores a batch.
                Ok(Outcome::Raced) => attempt = Attempt::InTurn,
                Err(error) if error.is_serialization_failure() => attempt = Attempt::InTurn,
                Err(error) => {
                    if error.is_ambiguous() {
                        self.wake(log);
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn append_batch_in(
        &self,
        db: &mut Session,
        log: LogId,
        batch: &Batch<'_>,
    ) -> Result<RangeInclusive<i64>, Error> {
        // Before the statement: if this future is dropped, the transaction may still commit the batch.
        self.wake_after(db, log);
        let mut attempt = Attempt::AtOnce;
        let ids = loop {
            match append(&mut *db, log, None, batch, attempt).await? {
                Outcome::Stored(ids) => break ids,
                Outcome::SequenceUsed(ids) => break batch.recognize(&mut *db, log, ids).await?,
                Outcome::Raced => attempt = Attempt::InTurn,
            }
        };
        // Outside of a transaction, the first call has woken the followers before the append.
        self.wake_after(db, log);
        Ok(ids)
    }

    /// Stores a batch that has a writer and a sequence number, repeating it until there is an answer.
    async fn store(
        &self,
        log: LogId,
        after: Option<i64>,
        batch: &Batch<'_>,
    ) -> Result<RangeInclusive<i64>, Error> {
        let mut backoff = pauses(LONGEST_APPEND_PAUSE);
        loop {
            match self.append_batch(log, after, batch).await {
                Err(error) if error.may_be_repeated() => {
                    tracing::warn!(%log, %error, "append failed, will be repeated");
                    sleep(backoff.pause()).await;
                }
                result => return result,
            }
        }
    }
}
