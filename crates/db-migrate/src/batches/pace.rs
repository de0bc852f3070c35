//! How fast batches go.

use std::time::Duration;

/// The rows of the first batch. Their number doubles at most from batch to batch.
const FIRST: usize = 64;
/// The most rows of a batch: their keys and values are in memory, and their locks are held until the batch is stored.
const MOST: usize = 10_000;

/// The time of a batch with pauses, and without.
const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_millis(100);
/// Fewer rows spare nobody: the commit takes longer than they do.
const LEAST: usize = 128;

/// How fast batches go, and how much of the server they leave to others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    batch: Option<Duration>,
    pause: f64,
    rows_per_second: Option<u32>,
    max_lag: Option<u64>,
    workers: usize,
}

/// One worker, batches of 1 ms, and a pause of three times the time that a batch took.
impl Default for Pace {
    fn default() -> Self {
        Self { batch: None, pause: 3.0, rows_per_second: None, max_lag: None, workers: 1 }
    }
}

impl Pace {
    /// One worker without pauses: for a database that serves nobody meanwhile. It reads ahead by a second connection.
    #[must_use]
    pub fn flat_out() -> Self {
        Self::default().pause(0.0)
    }

    /// The time that a batch should take: by default 1 ms, or 100 ms without pauses. A batch has at least 128 rows, unless they take
    /// longer than 100 ms.
    ///
    /// Its rows are locked for others who write them until it is stored. A processor that is busy for long keeps short statements
    /// waiting: short batches disturb readers less than long ones do, with the same part of the time for pauses.
    #[must_use]
    pub fn batch(mut self, time: Duration) -> Self {
        self.batch = Some(time);
        self
    }

    /// The pause after a batch, as a multiple of the time that the batch took (default 3). On a busy server batches take longer, and
    /// so do the pauses.
    #[must_use]
    pub fn pause(mut self, times: f64) -> Self {
        self.pause = times.clamp(0.0, 1000.0);
        self
    }

    /// The most rows in a second, of all workers together (default: no limit).
    #[must_use]
    pub fn rows_per_second(mut self, rows: Option<u32>) -> Self {
        self.rows_per_second = rows;
        self
    }

    /// Waits while a standby has to replay more bytes of WAL than this (default: does not look).
    #[must_use]
    pub fn max_replication_lag(mut self, bytes: Option<u64>) -> Self {
        self.max_lag = bytes;
        self
    }

    /// The number of workers, each with a connection, or without pauses two (default 1, at least 1).
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    pub(super) fn number_of_workers(&self) -> usize {
        self.workers
    }

    /// Whether nothing keeps a worker from its next batch.
    pub(super) fn is_flat_out(&self) -> bool {
        self.pause <= 0.0 && self.rows_per_second.is_none()
    }

    pub(super) fn max_lag(&self) -> Option<u64> {
        self.max_lag
    }

    /// How long a worker pauses after a batch of this number of rows.
    pub(super) fn pause_after(&self, took: Duration, rows: usize) -> Duration {
        let by_load = took.mul_f64(self.pause);
        let by_rows = self.rows_per_second.map_or(Duration::ZERO, |limit| {
            let nanos = 1_000_000_000 * self.workers as u64 * rows as u64 / u64::from(limit.max(1));
            Duration::from_nanos(nanos).saturating_sub(took)
        });
        by_load.max(by_rows)
    }

    /// The rows of the next batch.
    pub(super) fn rows_after(&self, took: Duration, rows: usize, wanted: usize) -> usize {
        // A batch at the end of a range, or of long values, says little about more rows.
        if rows < wanted {
            return wanted;
        }
        let scaled = |time: Duration| {
            let rows = rows as u128 * time.as_nanos() / took.as_nanos().max(1);
            usize::try_from(rows).unwrap_or(MOST)
        };
        let wanted = scaled(self.batch_time()).max(scaled(LONG).min(LEAST));
        self.at_most(wanted.clamp(rows / 2, rows * 2))
    }

    fn batch_time(&self) -> Duration {
        self.batch.unwrap_or(if self.pause > 0.0 { SHORT } else { LONG })
    }

    pub(super) fn first_rows(&self) -> usize {
        self.at_most(FIRST)
    }

    /// Few enough that the limit by rows makes no bursts of more than a second.
    fn at_most(&self, rows: usize) -> usize {
        let of_a_second = self.rows_per_second.map_or(MOST, |limit| limit as usize / self.workers);
        rows.clamp(1, MOST).min(of_a_second.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: Duration = LONG;

    #[test]
    fn a_batch_is_short_with_pauses_and_of_few_rows_only_if_they_take_long() {
        let pace = Pace::default();

        assert_eq!(pace.rows_after(SHORT, 1000, 1000), 1000);
        assert_eq!(pace.rows_after(SHORT * 2, 1000, 1000), 500);
        assert_eq!(pace.rows_after(SHORT * 10, 200, 200), LEAST, "most of it is the commit");
        assert_eq!(pace.rows_after(LONG, 250, 250), LEAST);
        assert_eq!(pace.rows_after(LONG * 2, 250, 250), 125);
        assert_eq!(pace.rows_after(LONG, 10, 10), 10);
        assert_eq!(Pace::flat_out().rows_after(SHORT, 1000, 1000), 2000);
        assert_eq!(Pace::flat_out().batch(SHORT).rows_after(SHORT, 1000, 1000), 1000);
    }

    #[test]
    fn a_batch_approaches_its_time_by_twice_or_half() {
        let pace = Pace::flat_out();

        assert_eq!(pace.rows_after(BATCH, 500, 500), 500);
        assert_eq!(pace.rows_after(BATCH / 10, 500, 500), 1000);
        assert_eq!(pace.rows_after(BATCH * 2, 500, 500), 250);
        assert_eq!(pace.rows_after(BATCH * 20, 500, 500), 250);
        assert_eq!(pace.rows_after(BATCH * 20, 1, 1), 1);
        assert_eq!(pace.rows_after(Duration::ZERO, MOST, MOST), MOST);
        assert_eq!(pace.rows_after(Duration::ZERO, 3, 500), 500, "the last rows of a range");
    }

    #[test]
    fn a_pause_is_a_multiple_of_the_batch_and_keeps_the_rate() {
        assert_eq!(Pace::default().pause_after(BATCH, 500), BATCH * 3);
        assert_eq!(Pace::flat_out().pause_after(BATCH, 500), Duration::ZERO);

        let limited = Pace::flat_out().rows_per_second(Some(1000)).workers(2);
        assert_eq!(limited.pause_after(BATCH, 500), Duration::from_millis(900));
        assert_eq!(limited.pause_after(BATCH * 20, 500), Duration::ZERO);
        assert_eq!(limited.rows_after(Duration::ZERO, 400, 400), 500);
        assert_eq!(Pace::default().rows_per_second(Some(1)).workers(8).first_rows(), 1);
    }
}
