//! Counts that only their tokens move.

use std::marker::PhantomData;
use std::thread;

/// How many tokens of one kind are out. Nothing else raises or lowers the number.
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

/// One unit of a [`Count`], as a value without a size. Its owner gives it back to the pool's state: a token that is dropped
/// would be counted for ever.
#[derive(Debug)]
#[must_use = "a token is counted until the state has it back"]
pub(crate) struct Token<K>(PhantomData<K>);

impl<K> Drop for Token<K> {
    fn drop(&mut self) {
        debug_assert!(thread::panicking(), "a token was dropped that is still counted");
    }
}

/// A connection is in use.
#[derive(Debug)]
pub(crate) enum InUse {}

/// A connection is being dialled.
#[derive(Debug)]
pub(crate) enum Dials {}

/// A connection is with a task that verifies, repairs or closes it.
#[derive(Debug)]
pub(crate) enum Repairs {}

/// Of those in repair, one that takes long.
#[derive(Debug)]
pub(crate) enum SlowRepairs {}

/// What comes with a connection that is in use.
pub(crate) type Checkout = Token<InUse>;

/// What comes with an attempt to dial.
pub(crate) type Dialling = Token<Dials>;

/// What comes with a connection that is out of use: it is verified, repaired or closed.
#[derive(Debug)]
#[must_use = "a token is counted until the state has it back"]
pub(crate) struct Quarantined {
    pub(super) repair: Token<Repairs>,
    pub(super) slow: Option<Token<SlowRepairs>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_number_of_tokens_that_are_out() {
        let mut count = Count::<InUse>::default();
        let (one, other) = (count.enter(), count.enter());
        assert_eq!(count.get(), 2);

        count.leave(one);
        assert_eq!(count.get(), 1);
        count.leave(other);
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn tokens_take_no_room() {
        assert_eq!(size_of::<(Checkout, Dialling)>(), 0);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "still counted")]
    fn a_token_that_is_dropped_is_noticed() {
        drop(Count::<InUse>::default().enter());
    }
}
