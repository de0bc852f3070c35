//! State of which each thread has its own part: what two cores write in turns costs more than what is written.

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

/// The place of this thread's part, by the address of a thread-local: those of two threads are pages apart.
fn place() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    let address = MARK.with(|mark| std::ptr::from_ref(mark).addr());
    // The upper bits of the product depend on all bits of the address.
    let mixed = (address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - PARTS.ilog2());
    usize::try_from(mixed).unwrap_or_default()
}
