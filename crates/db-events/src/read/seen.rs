//! The batches that a reader has seen, which show later which of its events are unchanged.

use sqlx::{Executor, Postgres};
use time::OffsetDateTime;

use crate::{Event, LogId, Mark};

/// The number of newest batches that are all remembered.
const NEWEST: u64 = 32;
/// The number of batches that are remembered of each older span; each span is twice as long as the next newer one.
const SOME: u64 = 4;
/// The number of batches between two times that old ones are forgotten.
const BETWEEN: u64 = 16;

/// The last events of batches that were seen, with their marks: all of the newest batches, and fewer and fewer of the older
/// ones, so that a hundred represent a million. A log is only appended to: if one of these batches exists, so do all before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    ends: Vec<End>,
    /// The number of batches that were seen.
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// The batch's place among those that were seen.
    number: u64,
    id: i64,
    mark: Mark,
}

/// An event that was seen, and the batch that holds its id now.
#[derive(sqlx::FromRow)]
struct Stored {
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

    /// The mark of event `id`, if that is the last one that was seen.
    pub(crate) fn mark(&self, id: i64) -> Option<Mark> {
        self.ends.last().filter(|end| end.id == id).map(|end| end.mark)
    }

    /// Remembers events that come after all that were seen.
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
            // A further event of the same batch.
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

    /// The last remembered event that is still in the same batch; 0 if none is.
    pub(crate) async fn last_unchanged<'c>(
        &self,
        executor: impl Executor<'c, Database = Postgres>,
        log: LogId,
    ) -> Result<i64, sqlx::Error> {
        let ids: Vec<i64> = self.ends.iter().map(|end| end.id).collect();
        let rows: Vec<Stored> = sqlx::query_as(
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
        let is_same = |stored: &Stored| {
            let mark = Mark::of(stored.first, stored.at, stored.writer.zip(stored.sequence));
            self.ends.iter().any(|end| (end.id, end.mark) == (stored.id, mark))
        };
        Ok(rows.iter().filter(|stored| is_same(stored)).map(|stored| stored.id).max().unwrap_or(0))
    }
}

/// Whether a batch is remembered when `later` batches have come after it. Once false, it stays false.
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
    fn the_last_event_of_each_batch_is_remembered() {
        let mut seen = Seen::default();

        seen.take(&[event(1, 1), event(2, 2), event(3, 2)]);
        seen.take(&[event(4, 2), event(5, 5)]);
        seen.take(&[]);

        let ends: Vec<_> = seen.ends.iter().map(|end| (end.id, end.mark)).collect();
        assert_eq!(ends, [(1, mark(1)), (4, mark(2)), (5, mark(5))]);
        assert_eq!((seen.mark(5), seen.mark(4)), (Some(mark(5)), None));
    }

    #[test]
    fn all_of_the_newest_batches_are_remembered_and_ever_fewer_of_the_older_ones() {
        const COUNT: i64 = 100_000;
        let mut seen = Seen::default();

        for id in 1..=COUNT {
            seen.push(id, mark(id));
            assert!(seen.ends.len() <= 100, "{} after {id}", seen.ends.len());
        }

        let newest: Vec<i64> = seen.ends.iter().rev().take(32).map(|end| end.id).collect();
        assert_eq!(newest, (COUNT - 31..=COUNT).rev().collect::<Vec<_>>());
        // At each distance, a batch is remembered that is at most one and a half times as far back.
        let mut back = 1;
        while back < COUNT / 2 {
            let last = seen.ends.iter().rev().map(|end| COUNT - end.id).find(|there| *there >= back);
            assert!(last.is_some_and(|last| last <= back * 3 / 2 + 1), "{back} back: {last:?}");
            back += 1;
        }
    }
}
