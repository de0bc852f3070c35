//! Histograms that get their values in batches.
//!
//! An exporter such as that of Prometheus takes each value with a time and several atomic writes, and what it writes to is in no cache by
//! then: one value costs as much as ten in a row. So each thread collects some.

use metrics::Histogram;

use crate::stripes::Stripes;

/// Rows that a thread collects before it hands them on.
const BATCH: usize = 64;

/// Histograms that get a value each at the same time, and the rows on their way to them: until [`flush`](Self::flush), or until a thread has
/// enough of them.
pub(crate) struct Batched<const N: usize> {
    histograms: [Histogram; N],
    lists: Stripes<Vec<[f64; N]>>,
}

impl<const N: usize> Batched<N> {
    pub(crate) fn new(histograms: [Histogram; N]) -> Self {
        Self { histograms, lists: Stripes::new(Vec::new) }
    }

    pub(crate) fn record(&self, values: [f64; N]) {
        let mut rows = self.lists.own();
        rows.push(values);
        if rows.len() < BATCH {
            return;
        }
        let full = std::mem::replace(&mut *rows, Vec::with_capacity(BATCH));
        drop(rows);
        self.hand_on(&full);
    }

    /// Hands all values on.
    pub(crate) fn flush(&self) {
        for mut list in self.lists.all() {
            let rows = std::mem::take(&mut *list);
            drop(list);
            self.hand_on(&rows);
        }
    }

    fn hand_on(&self, rows: &[[f64; N]]) {
        // One histogram after the other, for the sake of the cache.
        for (at, histogram) in self.histograms.iter().enumerate() {
            for values in rows {
                histogram.record(values[at]);
            }
        }
    }
}

impl<const N: usize> Drop for Batched<N> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl<const N: usize> std::fmt::Debug for Batched<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Batched")
    }
}
