//! Counts that only their tokens change.

use std::marker::PhantomData;
use std::thread;

/// The number of existing tokens of one kind. Only tokens change it.
#[derive(Debug)]
pub(super) struct Count<K>(u32, PhantomData<K>);

impl<K> Default for Count<K> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}

impl<K> Count<K> {
    pub(super) fn get(&self) -> u32 {
        self.0
    }

    pub(super) fn enter(&mut self) -> Token<K> {
        self.0 += 1;
        Token(PhantomData)
    }

    pub(super) fn leave(&mut self, token: Token<K>) {
        self.0 -= 1;
        std::mem::forget(token);
    }
}

/// One unit of a [`Count`], zero-sized. Its owner must return it to the pool's state: a dropped token would stay counted.
#[derive(Debug)]
#[must_use = "a token is counted until it is returned to the state"]
pub(crate) struct Token<K>(PhantomData<K>);

impl<K> Drop for Token<K> {
    fn drop(&mut self) {
        debug_assert!(thread::panicking(), "a token was dropped while it was still counted");
    }
}

/// A connection is in use.
#[derive(Debug)]
pub(crate) enum InUse {}

/// A connection is being dialled.
#[derive(Debug)]
pub(crate) enum Dials {}

/// A connection is pinged, repaired or closed by a task.
#[derive(Debug)]
pub(crate) enum Repairs {}

/// A repair among those takes long.
#[derive(Debug)]
pub(crate) enum SlowRepairs {}

/// The token of a connection in use.
pub(crate) type Checkout = Token<InUse>;

/// The token of a dial.
pub(crate) type Dialling = Token<Dials>;

/// The token of a connection out of use, which is pinged, repaired or closed.
#[derive(Debug)]
#[must_use = "a token is counted until it is returned to the state"]
pub(crate) struct Quarantined {
    pub(super) repair: Token<Repairs>,
    pub(super) slow: Option<Token<SlowRepairs>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_number_of_existing_tokens() {
        let mut count = Count::<InUse>::default();
        let (one, other) = (count.enter(), count.enter());
        assert_eq!(count.get(), 2);

        count.leave(one);
        assert_eq!(count.get(), 1);
        count.leave(other);
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn tokens_are_zero_sized() {
        assert_eq!(size_of::<(Checkout, Dialling)>(), 0);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "still counted")]
    fn a_dropped_token_panics_in_debug_builds() {
        drop(Count::<InUse>::default().enter());
    }
}
