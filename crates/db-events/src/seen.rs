//! What a reader has seen of a log, to find out later what still holds of it.

use sqlx::{Executor, Postgres};
use time::OffsetDateTime;

use crate::{Event, LogId, Mark};

/// How many of the newest batches are all remembered.
const NEWEST: u64 = 32;
/// How many are remembered of each span of older ones that is twice as long as the one after it.
const SOME: u64 = 4;
/// How many come before it is looked which are old enough to be forgotten.
const BETWEEN: u64 = 16;

/// The last events of batches that were seen, with their marks: the newest ones all, of older ones the fewer the older they are, so that
/// a hundred say something of a million. A log is only appended to, so while one of them is there, everything before it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    ends: Vec<End>,
    /// How many batches there were.
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// Which batch it is of those that were seen.
    number: u64,
    id: i64,
    mark: Mark,
}

/// An event that was seen, and the batch that holds its number now.
#[derive(sqlx::FromRow)]
struct There {
    id: i64,
    first: i64,
    at: OffsetDateTime,
    writer: Option<i64>,
    sequence: Option<i64>,
}

impl Seen {
    pub(crate) fn at(id: i64, mark: Mark) -> Self {
        let mut seen = Self::default();
        seen.push(id, mark);
        seen
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The mark of an event that is the last one that was seen.
    pub(crate) fn mark(&self, id: i64) -> Option<Mark> {
        self.ends.last().filter(|end| end.id == id).map(|end| end.mark)
    }

    /// Events that come after all that was seen.
    pub(crate) fn take(&mut self, events: &[Event]) {
        for two in events.windows(2) {
            if two[0].mark != two[1].mark {
                self.push(two[0].id, two[0].mark);
            }
        }
        if let Some(last) = events.last() {
            self.push(last.id, last.mark);
        }
    }

    pub(crate) fn push(&mut self, id: i64, mark: Mark) {
        if let Some(last) = self.ends.last_mut().filter(|last| last.mark == mark) {
            // More of the same batch.
            last.id = id;
            return;
        }
        self.count += 1;
        self.ends.push(End { number: self.count, id, mark });
        if self.count.is_multiple_of(BETWEEN) {
            let count = self.count;
            self.ends.retain(|end| is_kept(end.number, count - end.number));
        }
    }

    /// The last event of those that are remembered that is still in the same batch; 0 if none is.
    pub(crate) async fn still_there<'c>(
        &self,
        executor: impl Executor<'c, Database = Postgres>,
        log: LogId,
    ) -> Result<i64, sqlx::Error> {
        let ids: Vec<i64> = self.ends.iter().map(|end| end.id).collect();
        let rows: Vec<There> = sqlx::query_as(
            "select seen.id, batch.first, batch.at, batch.writer, batch.sequence
             from unnest($2) as seen (id)
             cross join lateral (
                 select first, last, at, writer, sequence
                 from event_log_batches
                 where log = $1 and first <= seen.id
                 order by first desc
                 limit 1
             ) as batch
             where batch.last >= seen.id",
        )
        .bind(log.0)
        .bind(&ids)
        .fetch_all(executor)
        .await?;
        let is_same = |there: &There| {
            let mark = Mark::of(there.first, there.at, there.writer.zip(there.sequence));
            self.ends.iter().any(|end| (end.id, end.mark) == (there.id, mark))
        };
        Ok(rows.iter().filter(|there| is_same(there)).map(|there| there.id).max().unwrap_or(0))
    }
}

/// Whether a batch is remembered when so many have come after it. One that is not never is again.
fn is_kept(number: u64, later: u64) -> bool {
    later < NEWEST || number.is_multiple_of(1 << (later / SOME).ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(batch: i64) -> Mark {
        Mark::of(batch, OffsetDateTime::UNIX_EPOCH, None)
    }

    fn event(id: i64, batch: i64) -> Event {
        let at = OffsetDateTime::UNIX_EPOCH;
        Event { id, kind: "n".into(), version: 1, data: String::new(), at, mark: mark(batch) }
    }

    #[test]
    fn of_each_batch_its_last_event_is_remembered() {
        let mut seen = Seen::default();

        seen.take(&[event(1, 1), event(2, 2), event(3, 2)]);
        seen.take(&[event(4, 2), event(5, 5)]);
        seen.take(&[]);

        let ends: Vec<_> = seen.ends.iter().map(|end| (end.id, end.mark)).collect();
        assert_eq!(ends, [(1, mark(1)), (4, mark(2)), (5, mark(5))]);
        assert_eq!((seen.mark(5), seen.mark(4)), (Some(mark(5)), None));
    }

    #[test]
    fn the_newest_batches_are_all_remembered_and_the_older_ones_the_fewer_the_older_they_are() {
        const COUNT: i64 = 100_000;
        let mut seen = Seen::default();

        for id in 1..=COUNT {
            seen.push(id, mark(id));
            assert!(seen.ends.len() <= 100, "{} after {id}", seen.ends.len());
        }

        let newest: Vec<i64> = seen.ends.iter().rev().take(32).map(|end| end.id).collect();
        assert_eq!(newest, (COUNT - 31..=COUNT).rev().collect::<Vec<_>>());
        // However far back, something is remembered that is not much further back.
        let mut back = 1;
        while back < COUNT / 2 {
            let last = seen.ends.iter().rev().map(|end| COUNT - end.id).find(|there| *there >= back);
            assert!(last.is_some_and(|last| last <= back * 3 / 2 + 1), "{back} back: {last:?}");
            back += 1;
        }
    }
}
