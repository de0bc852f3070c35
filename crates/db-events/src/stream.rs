//! Reading from a cursor, and following to the end.

use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use db_core::Pool;
use db_notify::{Bus, Subscription};
use futures_util::{FutureExt, Stream};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::append::STATEMENT_LIMIT;
use crate::log::topic;
use crate::{Error, Event, Head, LogId};

/// The longest time between two looks at a log that is followed; a lost notification costs at most this delay.
pub const POLL_FLOOR: Duration = Duration::from_secs(5);

/// How much text a page holds, but for its last batch.
const PAGE_BYTES: i64 = 1 << 20;
/// How many batches a page looks at.
const PAGE_BATCHES: i64 = 1000;

/// The events of a log after a cursor, live, until the log is finished.
///
/// A database that is away is waited for: only what waiting cannot mend is an error.
#[derive(Debug)]
pub struct EventStream {
    pool: Pool,
    log: LogId,
    cursor: i64,
    /// Made before the first look, so that no append falls between a look and the wait after it.
    wakeups: Subscription,
    bus_open: bool,
    ended: bool,
}

#[derive(sqlx::FromRow)]
struct Row {
    first: i64,
    types: Vec<String>,
    data: Vec<String>,
    is_final: bool,
    at: OffsetDateTime,
}

impl EventStream {
    pub(crate) fn new(pool: Pool, bus: &Bus, log: LogId, after: i64) -> Self {
        let wakeups = bus.subscribe(&topic(log), 1);
        Self { pool, log, cursor: after.clamp(0, i64::MAX - 1), wakeups, bus_open: true, ended: false }
    }

    /// The last event that was returned: the cursor to resume with.
    #[must_use]
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// The next events, at least one, in order; `None` once the log is finished and all was returned.
    ///
    /// Cancel safe: the cursor moves only when events are returned.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], or what waiting cannot mend.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let mut pauses = backoff();
        while !self.ended {
            match self.look().await {
                Ok(events) if !events.is_empty() => return Ok(Some(events)),
                Ok(_) if self.ended => break,
                Ok(_) => {
                    pauses = backoff();
                    self.wait().await;
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(log = %self.log, %error, "cannot read events yet");
                    tokio::time::sleep(pauses.next().unwrap_or(POLL_FLOOR)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The same, one event at a time, as a [`Stream`].
    pub fn events(mut self) -> impl Stream<Item = Result<Event, Error>> + Send {
        try_stream! {
            while let Some(batch) = self.next_batch().await? {
                for event in batch {
                    yield event;
                }
            }
        }
    }

    /// One page after the cursor, empty at the end.
    async fn look(&mut self) -> Result<Vec<Event>, Error> {
        let what = "read an event log";
        loop {
            // What came before the look is seen by it.
            while let Some(Some(_)) = self.wakeups.recv().now_or_never() {}
            let limit = STATEMENT_LIMIT + STATEMENT_LIMIT;
            let read = async {
                let page = self.page().await?;
                let head = if page.is_empty() {
                    Some(Head::read(self.pool.handle(), self.log).await?)
                } else {
                    None
                };
                Ok((page, head))
            };
            let (page, head) = match timeout(limit, read).await {
                Ok(result) => result.map_err(Error::database(what))?,
                Err(_) => {
                    return Err(Error::TimedOut { what, seconds: limit.as_secs() });
                }
            };
            match head {
                None => return Ok(self.take(page)),
                Some(None) => return Err(Error::UnknownLog(self.log)),
                // Appended between the two queries.
                Some(Some(head)) if head.last > self.cursor => {}
                Some(Some(head)) => {
                    self.ended = head.is_finished;
                    return Ok(Vec::new());
                }
            }
        }
    }

    async fn page(&self) -> Result<Vec<Row>, sqlx::Error> {
        sqlx::query_as(
            "select first, types, data, is_final, at
             from (
                 select first, types, data, is_final, at,
                     sum(bytes) over (order by first rows unbounded preceding) - bytes as before
                 from (
                     select *
                     from event_log_batches
                     where log = $1
                         and first >= coalesce(
                             (select max(first) from event_log_batches where log = $1 and first <= $2 + 1), 1
                         )
                         and last > $2
                     order by first
                     limit $3
                 ) as next
             ) as page
             where before < $4
             order by first",
        )
        .bind(self.log.0)
        .bind(self.cursor)
        .bind(PAGE_BATCHES)
        .bind(PAGE_BYTES)
        .fetch_all(self.pool.handle())
        .await
    }

    fn take(&mut self, rows: Vec<Row>) -> Vec<Event> {
        let mut events = Vec::new();
        for row in rows {
            let kinds: Vec<Arc<str>> = row.types.iter().map(|kind| kind.as_str().into()).collect();
            for ((id, data), number) in (row.first..).zip(row.data).zip(0..) {
                if id <= self.cursor {
                    continue;
                }
                let kind = kinds.get(number).or(kinds.first()).cloned().unwrap_or_default();
                events.push(Event { id, kind, data, at: row.at });
            }
            self.ended |= row.is_final;
        }
        if let Some(last) = events.last() {
            self.cursor = last.id;
        }
        events
    }

    /// Waits for a reason to look again.
    async fn wait(&mut self) {
        // Spread, so that many streams do not look at the same moment.
        let floor = POLL_FLOOR.mul_f64(fastrand::f64().mul_add(0.2, 0.8));
        if self.bus_open {
            match timeout(floor, self.wakeups.recv()).await {
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => self.bus_open = false,
            }
        } else {
            tokio::time::sleep(floor).await;
        }
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(POLL_FLOOR)
        .with_jitter()
        .without_max_times()
        .build()
}
