//! Removing what is old.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;

use crate::log::limited;
use crate::{Error, EventLogs, LogId};

/// How many batches one statement removes.
const CHUNK: i64 = 1000;

/// Removing, in errors.
const WHAT: &str = "remove an event log";

/// How often it is looked whether all who were writing when a log was removed have ended, and how long to wait in between.
const FENCE_TRIES: usize = 50;
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// Which logs are removed, and how gently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// How long ago a log must have been finished, by the database's clock. One that is not finished is never removed.
    pub older_than: Duration,
    /// How long to wait after each statement that removes [20 ms]: writers and readers have the database meanwhile.
    pub pause: Duration,
}

impl Retention {
    /// Removes what was finished longer ago than that.
    #[must_use]
    pub fn older_than(age: Duration) -> Self {
        Self { older_than: age, pause: Duration::from_millis(20) }
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Logs that are gone.
    pub logs: u64,
    /// Batches that they had.
    pub batches: u64,
    /// Logs that are old enough, and that something else refers to by a foreign key: whoever owns that removes it first.
    pub kept: u64,
}

/// Where the search is.
type Place = (OffsetDateTime, i64);

impl EventLogs {
    /// Removes logs that were finished long ago, one after the other, by statements that remove some at a time. Whoever follows
    /// one is told that it is gone.
    ///
    /// Several may do so at once, and dropping the future leaves a log that is gone with some of its batches: the next time
    /// removes them.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] and [`Error::TimedOut`]; what was removed stays so.
    pub async fn retain(&self, retention: &Retention) -> Result<Removed, Error> {
        let mut removed = Removed::default();
        let mut place: Place = (OffsetDateTime::UNIX_EPOCH, 0);
        while let Some(next) = self.finished_after(place, retention.older_than).await? {
            place = next;
            match self.remove_log(LogId(next.1), retention.pause).await {
                Ok(batches) => {
                    removed.logs += 1;
                    removed.batches += batches;
                }
                Err(error) if error.is_referred_to() => removed.kept += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Removes a log, finished or not, with all of its events; that there is none is no error. An append that is under way is stored
    /// before it, and goes with the log, or fails. A row of somebody else's that
    /// refers to it is removed first, by its owner.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], and then nothing is removed if a row refers to the log. [`Error::TimedOut`] while somebody's transaction
    /// that has appended to the log is open.
    pub async fn remove(&self, log: LogId) -> Result<(), Error> {
        self.remove_log(log, Duration::ZERO).await.map(drop)
    }

    /// The log that ended next after a place, if that is long enough ago.
    async fn finished_after(&self, (at, log): Place, age: Duration) -> Result<Option<Place>, Error> {
        let seconds = age.as_secs_f64();
        let find = sqlx::query_as(
            "select at, log
             from event_log_batches
             where is_final and (at, log) > ($1, $2) and at <= now() - make_interval(secs => $3)
             order by at, log
             limit 1",
        )
        .bind(at)
        .bind(log)
        .bind(seconds)
        .fetch_optional(self.handle());
        limited("look for old event logs", find).await
    }

    /// An append that waits for another one's end has looked at the log before it was gone. It meets the fence, a last row that
    /// is no batch, where it wanted to insert: it waits for it, fails, and does not find the log when it tries again. Likewise,
    /// the fence waits for an append whose transaction is open, and then comes after it.
    async fn remove_log(&self, log: LogId, pause: Duration) -> Result<u64, Error> {
        let fence = self.fence(log).await?;
        // Those who follow find out.
        self.wake(log);
        // An append that had looked before wakes with the one that it waited for, and must find that one's row.
        if fence.is_some() && !self.appends_have_ended().await? {
            return Ok(0);
        }
        let (mut batches, mut after) = (0, 0);
        while let Some((removed, last)) = self.remove_chunk(log, after).await? {
            batches += removed;
            after = last;
            sleep(pause).await;
        }
        Ok(batches)
    }

    /// Has the log gone at once for everybody, or not at all if something refers to it, and ends it with a fence unless it was finished.
    /// Returns the fence's number.
    async fn fence(&self, log: LogId) -> Result<Option<i64>, Error> {
        loop {
            let gone = sqlx::query_scalar(
                "with gone as (delete from event_logs where id = $1 returning id)
                 insert into event_log_batches (log, first, last, bytes, types, data, is_final)
                 select gone.id, coalesce(tail.last, 0) + 1, coalesce(tail.last, 0) + 1, 0, '{}', '{}', true
                 from gone
                 left join lateral (
                     select last, is_final
                     from event_log_batches
                     where log = gone.id
                     order by first desc
                     limit 1
                 ) as tail on true
                 where tail.is_final is not true
                 returning first",
            )
            .bind(log.0)
            .fetch_optional(self.handle());
            match limited(WHAT, gone).await {
                // An append was quicker, so this ends: each turn somebody gets on.
                Err(Error::Database { cause, .. }) if cause.is_unique_violation() => {}
                other => return other,
            }
        }
    }

    /// The transactions that may have looked at a log before it was gone, and append to it now: they hold a lock of the table.
    async fn writing(&self) -> Result<Vec<String>, Error> {
        let writing = sqlx::query_scalar(
            "select distinct virtualtransaction
             from pg_locks
             where relation = 'event_log_batches'::regclass
                 and database = (select oid from pg_database where datname = current_database())
                 and mode = 'RowExclusiveLock'
                 and pid <> pg_backend_pid()",
        )
        .fetch_all(self.handle());
        limited(WHAT, writing).await
    }

    /// Waits for those who may append to a log that has just gone. If that takes too long, the batches stay, and `retain` finds them
    /// by the fence.
    async fn appends_have_ended(&self) -> Result<bool, Error> {
        let writing = self.writing().await?;
        for _ in 0..FENCE_TRIES {
            let still = self.writing().await?;
            if !still.iter().any(|one| writing.contains(one)) {
                return Ok(true);
            }
            sleep(FENCE_PAUSE).await;
        }
        Ok(false)
    }

    /// Removes the next batches after one that begins with event `after`; returns how many, and with which event the last one
    /// began. The final one goes at the end: by it, a log that is half removed is found again.
    ///
    /// The chunk is a range of the primary key, for the same reasons as [a page](crate::page::Page::read), and its rows are found by
    /// their places: what was removed before is not looked at again, and nothing is looked for.
    async fn remove_chunk(&self, log: LogId, after: i64) -> Result<Option<(u64, i64)>, Error> {
        let remove = sqlx::query_as::<_, (i64, Option<i64>)>(
            "with chunk as materialized (
                 select ctid, first
                 from event_log_batches
                 where (log, first) > ((select $1), (select $2)) and (log, first) <= ((select $1), (select $4))
                 order by log, first
                 limit (select $3)
             ), gone as (
                 delete from event_log_batches where ctid = any(array(select ctid from chunk)) returning 1
             )
             select (select count(*) from gone), (select max(first) from chunk)",
        )
        .bind(log.0)
        .bind(after)
        .bind(CHUNK)
        .bind(i64::MAX)
        .fetch_one(self.handle());
        let (removed, last) = limited(WHAT, remove).await?;
        Ok(last.map(|last| (removed.cast_unsigned(), last)))
    }
}
