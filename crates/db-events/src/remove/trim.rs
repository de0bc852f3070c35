//! Removing the beginning of a log that goes on.

use std::time::Duration;

use tokio::time::sleep;

use super::{CHUNK, PAUSE};
use crate::deadline::limited;
use crate::{Error, EventLogs, LogId};

/// Which events of a log to remove, and at what pace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trim {
    keep: Keep,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Last(u64),
    Within(Duration),
}

impl Trim {
    /// Keeps the last `count` events.
    #[must_use]
    pub fn keep_last(count: u64) -> Self {
        Self { keep: Keep::Last(count), pause: PAUSE }
    }

    /// Removes events that were appended longer than `age` ago, by the database's clock.
    #[must_use]
    pub fn older_than(age: Duration) -> Self {
        Self { keep: Keep::Within(age), pause: PAUSE }
    }

    /// Sets the pause after each statement that removes up to 1000 batches (default 20 ms). It leaves the database to writers
    /// and readers.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }
}

impl EventLogs {
    /// Removes events from the beginning of a log, by statements that remove some at a time. Returns the number of batches that were
    /// removed. Appends go on meanwhile, and several processes may trim a log at once.
    ///
    /// Batches are removed whole, as long as all of their events are to be removed, and the last batch stays: the next append
    /// continues its ids. So a log may keep some more events than [`Trim`] says.
    ///
    /// A reader whose next event was removed gets [`Error::Removed`] with the first event that is left, and can read on from
    /// there. A reader that resumes with the mark of the last removed event gets the same error although it has missed nothing,
    /// since no row is left to compare the mark with. Keep more events than your slowest reader is behind.
    ///
    /// If the future is dropped, some of the events are removed.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLog`], [`Error::Removed`], [`Error::Database`] and [`Error::TimedOut`]. Events that were removed stay removed.
    pub async fn trim(&self, log: LogId, trim: &Trim) -> Result<u64, Error> {
        let head = self.head(log).await?;
        let (until, age) = match trim.keep {
            Keep::Last(count) => (head.last.saturating_sub_unsigned(count), None),
            Keep::Within(age) => (i64::MAX, Some(age.as_secs_f64())),
        };
        let (mut all, mut after) = (0, 0);
        while let Some((removed, last)) = self.trim_chunk(log, after, until, age).await? {
            all += removed.cast_unsigned();
            after = last;
            if removed < CHUNK {
                break;
            }
            sleep(trim.pause).await;
        }
        Ok(all)
    }

    /// Removes the next batches after the one that begins with event `after`, up to event `until`, as long as they are older than
    /// `age` seconds. Returns how many were removed, and the first event of the last one that was considered.
    ///
    /// Batches are not exactly in the order of their times, since a batch has the time at which its transaction began. So the
    /// statement removes only the batches before the first one that stays, and never makes a hole.
    async fn trim_chunk(
        &self,
        log: LogId,
        after: i64,
        until: i64,
        age: Option<f64>,
    ) -> Result<Option<(i64, i64)>, Error> {
        let remove = sqlx::query_as::<_, (i64, Option<i64>)>(
            "with chunk as materialized (
                 select ctid, first,
                     last <= $3 and ($4::float8 is null or at <= now() - make_interval(secs => $4)) as is_old
                 from event_log_batches
                 where (log, first) > ((select $1), (select $2)) and (log, first) <= ((select $1), (select $6))
                 order by log, first
                 limit (select $5)
             ), tail as (
                 select max(first) as first from event_log_batches where log = $1
             ), gone as (
                 delete from event_log_batches
                 where ctid = any(array(
                     select ctid
                     from chunk
                     where first < (select first from tail)
                         and first < coalesce((select min(first) from chunk where not is_old), $6)
                 ))
                 returning 1
             )
             select (select count(*) from gone), (select max(first) from chunk)",
        )
        .bind(log.0)
        .bind(after)
        .bind(until)
        .bind(age)
        .bind(CHUNK)
        .bind(i64::MAX)
        .fetch_one(self.handle());
        let (removed, last) = limited("trim an event log", remove).await?;
        Ok(last.map(|last| (removed, last)))
    }
}
