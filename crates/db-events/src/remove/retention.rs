//! Removing whole logs.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;

use super::{CHUNK, PAUSE};
use crate::deadline::limited;
use crate::{Error, EventLogs, LogId};

/// The name of the operation, in errors.
const WHAT: &str = "remove an event log";

/// Limits the wait for the transactions that were open when a log was removed: the most checks, and the pause between them.
const FENCE_TRIES: usize = 50;
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// Which logs to remove, and at what pace.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// How long ago a log must have been finished, by the database's clock. A log that is not finished is never removed.
    pub older_than: Duration,
    /// The pause after each statement that removes up to 1000 batches (default 20 ms). It leaves the database to writers and
    /// readers.
    pub pause: Duration,
}

impl Retention {
    /// Removes logs that were finished longer than `age` ago.
    #[must_use]
    pub fn older_than(age: Duration) -> Self {
        Self { older_than: age, pause: PAUSE }
    }

    /// Sets [`pause`](Self::pause).
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }
}

/// What a retention has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Removed {
    /// Logs that were removed.
    pub logs: u64,
    /// Batches of these logs.
    pub batches: u64,
    /// Logs that were old enough and were kept, because a foreign key refers to them. Remove the rows that refer to them first.
    pub kept: u64,
}

/// A finished log, by the time of its end.
type Finished = (OffsetDateTime, i64);

impl EventLogs {
    /// Removes logs that were finished long ago, one after the other, by statements that remove some batches at a time. Streams of
    /// such a log end with [`Error::Removed`].
    ///
    /// Several processes may do so at once. If the future is dropped, a log may be gone while some of its batches remain: the
    /// next call removes them.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] and [`Error::TimedOut`]. Logs that were removed stay removed.
    pub async fn retain(&self, retention: &Retention) -> Result<Removed, Error> {
        let mut removed = Removed::default();
        let mut place: Finished = (OffsetDateTime::UNIX_EPOCH, 0);
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

    /// Removes a log, finished or not, with all of its events. It is no error if there is no such log. An append that is under way
    /// is stored first and removed with the log, or fails. Rows that refer to the log must be removed first.
    ///
    /// # Errors
    ///
    /// [`Error::Database`]: if a row refers to the log, nothing is removed. [`Error::TimedOut`] while another transaction that has
    /// appended to the log is open.
    pub async fn remove(&self, log: LogId) -> Result<(), Error> {
        self.remove_log(log, Duration::ZERO).await.map(drop)
    }

    /// The log that was finished next after another one, if that is long enough ago.
    async fn finished_after(&self, (at, log): Finished, age: Duration) -> Result<Option<Finished>, Error> {
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
        limited("find old event logs", find).await
    }

    /// Removes a log with a fence: a last row that is no batch.
    ///
    /// An append that waits for another append's end has a snapshot from before the removal. When it then inserts, it conflicts
    /// with the fence: it waits for the fence's transaction, inserts nothing, and does not find the log in its next attempt.
    /// Likewise, the fence waits for an append whose transaction is open, and is then inserted after it.
    async fn remove_log(&self, log: LogId, pause: Duration) -> Result<u64, Error> {
        let fence = self.fence(log).await?;
        // Followers find out that the log is gone.
        self.wake(log);
        // An append with an older snapshot must still find the row of the append that it has waited for.
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

    /// Removes the log's row, after which it is gone for all processes, and puts a fence behind its last batch unless the log was
    /// finished. Returns the fence's id. Nothing is done if a foreign key refers to the log.
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
                // An append was inserted first, so this loop ends: in each round, some append is stored.
                Err(Error::Database { cause, .. }) if cause.is_unique_violation() => {}
                other => return other,
            }
        }
    }

    /// The open transactions that may append to a log that was removed after their snapshot: they hold a lock of the table.
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

    /// Waits for the transactions that may append to a log that was just removed. If that takes too long, the batches stay, and
    /// `retain` finds them by the fence.
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

    /// Removes the next batches after the one that begins with event `after`. Returns how many, and the first event of the last
    /// one. The final batch is removed last, since a half-removed log is found by it.
    ///
    /// The chunk is a range of the primary key, for the same reasons as [a page](crate::read::Page::read), and its rows are deleted
    /// by their physical places: rows that were removed before are not scanned again.
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
