//! A histogram that gets its values in batches.
//!
//! An exporter such as that of Prometheus takes each value with a time and several atomic writes, and what it writes to is in no cache by
//! then: one value costs as much as ten in a row. So each thread collects some.

use std::array;
use std::sync::{Mutex, PoisonError};

use metrics::{Histogram, IntoF64};

/// Values that a thread collects before it hands them on.
const BATCH: usize = 64;

/// Lists of values. More threads than that share them.
const LISTS: usize = 8;

/// A histogram, and the values on their way to it: until [`flush`](Self::flush), or until a thread has enough of them.
pub(crate) struct Batched {
    histogram: Histogram,
    lists: [List; LISTS],
}

/// Aligned so that no two share a cache line.
#[derive(Default)]
#[repr(align(64))]
struct List(Mutex<Vec<f64>>);

impl Batched {
    pub(crate) fn new(histogram: Histogram) -> Self {
        Self { histogram, lists: array::from_fn(|_| List::default()) }
    }

    pub(crate) fn record(&self, value: impl IntoF64) {
        let List(list) = &self.lists[own_list()];
        let mut values = list.lock().unwrap_or_else(PoisonError::into_inner);
        values.push(value.into_f64());
        if values.len() < BATCH {
            return;
        }
        let full = std::mem::replace(&mut *values, Vec::with_capacity(BATCH));
        drop(values);
        self.hand_on(full);
    }

    /// Hands all values on.
    pub(crate) fn flush(&self) {
        for List(list) in &self.lists {
            let values = std::mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner));
            self.hand_on(values);
        }
    }

    fn hand_on(&self, values: Vec<f64>) {
        for value in values {
            self.histogram.record(value);
        }
    }
}

impl Drop for Batched {
    fn drop(&mut self) {
        self.flush();
    }
}

impl std::fmt::Debug for Batched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Batched")
    }
}

/// The list of this thread, by the address of a thread-local: those of two threads are pages apart.
fn own_list() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    let address = MARK.with(|mark| std::ptr::from_ref(mark).addr());
    // The upper bits of the product depend on all bits of the address.
    ((address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - LISTS.ilog2())) as usize
}
