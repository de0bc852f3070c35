//! Histograms that get their values in batches.
//!
//! An exporter such as that of Prometheus takes each value with a time and several atomic writes, and what it writes to is in no cache by
//! then: one value costs as much as ten in a row. So each thread collects some.

use std::array;
use std::sync::{Mutex, PoisonError};

use metrics::Histogram;

/// Rows that a thread collects before it hands them on.
const BATCH: usize = 64;

/// Lists of rows. More threads than that share them.
const LISTS: usize = 8;

/// Histograms that get a value each at the same time, and the rows on their way to them: until [`flush`](Self::flush), or until a thread has
/// enough of them.
pub(crate) struct Batched<const N: usize> {
    histograms: [Histogram; N],
    lists: [List<N>; LISTS],
}

/// Aligned so that no two share a cache line.
#[derive(Default)]
#[repr(align(64))]
struct List<const N: usize>(Mutex<Vec<[f64; N]>>);

impl<const N: usize> Batched<N> {
    pub(crate) fn new(histograms: [Histogram; N]) -> Self {
        Self { histograms, lists: array::from_fn(|_| List::default()) }
    }

    pub(crate) fn record(&self, values: [f64; N]) {
        let List(list) = &self.lists[own_list()];
        let mut rows = list.lock().unwrap_or_else(PoisonError::into_inner);
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
        for List(list) in &self.lists {
            let rows = std::mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner));
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

/// The list of this thread, by the address of a thread-local: those of two threads are pages apart.
fn own_list() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    let address = MARK.with(|mark| std::ptr::from_ref(mark).addr());
    // The upper bits of the product depend on all bits of the address.
    let mixed = (address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - LISTS.ilog2());
    usize::try_from(mixed).unwrap_or_default()
}
