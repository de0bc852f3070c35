//! The handle to all logs of a database.

use std::ops::RangeInclusive;

use db_core::{Handle, Pool, Tx};
use db_notify::{Bus, Topic};
use sqlx::Executor;
use tokio::time::timeout;

use crate::append::{Batch, Outcome, STATEMENT_LIMIT, append};
use crate::{Error, EventStream, Head, LogId, NewEvent, Writer};

/// The event logs of a database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    pool: Pool,
    bus: Bus,
}

impl EventLog {
    /// Event logs in the pool's database, whose tables a migration has made ([`SCHEMA`](crate::SCHEMA)); `bus` wakes
    /// those who follow.
    #[must_use]
    pub fn new(pool: Pool, bus: Bus) -> Self {
        Self { pool, bus }
    }

    /// Makes an empty log.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn create(&self) -> Result<LogId, Error> {
        create(self.handle()).await
    }

    /// Makes an empty log in a transaction, together with whatever it belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn create_in(&self, tx: &mut Tx) -> Result<LogId, Error> {
        create(tx).await
    }

    /// Appends events, all of them or none, after the log's last one. Returns their ids.
    ///
    /// One statement and one round trip; again when another writer was quicker. Dropping the future leaves all stored or
    /// none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Finished`], and what is wrong with the events: nothing is stored then. With
    /// [`Error::TimedOut`] and with a lost connection, they may be stored or not; [`Writer`] finds out.
    pub async fn append(&self, log: LogId, events: &[NewEvent]) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, false)?).await
    }

    /// Appends the last events of a log, at least one. Nothing can be appended afterwards, and streams end.
    ///
    /// # Errors
    ///
    /// As [`EventLog::append`].
    pub async fn finish(&self, log: LogId, events: &[NewEvent]) -> Result<RangeInclusive<i64>, Error> {
        self.append_batch(log, None, &Batch::new(events, true)?).await
    }

    /// A writer that knows where the log ends because it is the only one. `last` is the log's last event, 0 for a new
    /// log.
    #[must_use]
    pub fn writer(&self, log: LogId, last: i64) -> Writer {
        Writer::new(self.clone(), log, last)
    }

    /// The events after event `after` (0 for all), and those to come, until the log is finished.
    #[must_use]
    pub fn stream(&self, log: LogId, after: i64) -> EventStream {
        EventStream::new(self.pool.clone(), &self.bus, log, after)
    }

    /// Where a log ends now.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`] or [`Error::Database`].
    pub async fn head(&self, log: LogId) -> Result<Head, Error> {
        limited("read an event log", Head::read(self.handle(), log)).await?.ok_or(Error::UnknownLog(log))
    }

    pub(crate) async fn append_batch(
        &self,
        log: LogId,
        after: Option<i64>,
        batch: &Batch<'_>,
    ) -> Result<RangeInclusive<i64>, Error> {
        loop {
            // Taken here, so that the wait for a connection has the pool's limit and the statement its own.
            let mut conn = self.handle().acquire().await.map_err(|error| Error::of(error.into()))?;
            match append(&mut conn, log, after, batch).await? {
                Outcome::Stored(ids) => {
                    self.wake(log);
                    return Ok(ids);
                }
                // The writer that was quicker has committed, so this ends: each turn some writer gets on.
                Outcome::Raced => {}
            }
        }
    }

    /// Tells those who follow a log to look.
    pub(crate) fn wake(&self, log: LogId) {
        if let Err(error) = self.bus.notify_soon(&topic(log), "") {
            // The bus is closing; followers find the events at their next look.
            tracing::debug!(%log, %error, "not notified");
        }
    }

    #[track_caller]
    pub(crate) fn handle(&self) -> Handle {
        self.pool.handle()
    }
}

async fn create<'c>(executor: impl Executor<'c, Database = sqlx::Postgres>) -> Result<LogId, Error> {
    let create = sqlx::query_scalar("insert into event_logs default values returning id").fetch_one(executor);
    limited("create an event log", create).await.map(LogId)
}

async fn limited<T>(
    what: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(STATEMENT_LIMIT, statement).await {
        Ok(result) => result.map_err(Error::database(what)),
        Err(_) => Err(Error::TimedOut { what, seconds: STATEMENT_LIMIT.as_secs() }),
    }
}

/// The topic that a log's appends are notified under.
pub(crate) fn topic(log: LogId) -> Topic {
    Topic::new(format!("log/{log}")).expect("a short text without NUL")
}
