//! State in parts, so that few threads share one: what two cores write in turns costs more than what is written.

use std::array;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Parts. More threads than that share them.
const PARTS: usize = 8;

/// State in parts, each with a lock, which its thread finds free nearly always.
#[derive(Debug)]
pub(crate) struct Stripes<T>([Part<T>; PARTS]);

/// Aligned so that no two share a cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Part<T>(Mutex<T>);

impl<T> Part<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Stripes<T> {
    pub(crate) fn new(make: impl Fn() -> T) -> Self {
        Self(array::from_fn(|_| Part(Mutex::new(make()))))
    }

    /// The part of this thread.
    pub(crate) fn own(&self) -> MutexGuard<'_, T> {
        self.0[place()].lock()
    }

    /// All parts, one after the other.
    pub(crate) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, T>> {
        self.0.iter().map(Part::lock)
    }
}

/// The place of this thread's part, by the address of a thread-local.
fn place() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    place_of(MARK.with(|mark| std::ptr::from_ref(mark).addr()))
}

/// The addresses of threads that begin one after the other are a stack of some MiB apart, and often a guard page. Both turn into different
/// parts.
fn place_of(address: usize) -> usize {
    (address >> 12).wrapping_add(address >> 20) % PARTS
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn threads_that_begin_one_after_the_other_have_different_parts() {
        let parts = |apart: usize| {
            let places: HashSet<_> = (0..PARTS).map(|n| place_of(0x7f12_3400_06b8 + n * apart)).collect();
            places.len()
        };

        assert_eq!([0x20_1000, 0x80_1000, 0x10_1000, 0x1000].map(parts), [8, 8, 4, 8]);
        // Without a guard page.
        assert_eq!([0x20_0000, 0x10_0000].map(parts), [4, 8]);
    }
}
