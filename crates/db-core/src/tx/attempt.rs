//! A transaction that may be one of several.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::Tx;

/// The transaction of one attempt of [`Handle::tx_retry`](crate::Handle::tx_retry): use it as a `&mut Tx`.
///
/// It is a type of its own for the sake of `'env`: that it outlives `'t` follows from the type, so the closure's future may
/// borrow from its surroundings, which a closure for any `'t` could otherwise not.
#[derive(Debug)]
pub struct Attempt<'t, 'env: 't> {
    tx: &'t mut Tx,
    surroundings: PhantomData<&'env ()>,
}

impl<'t> Attempt<'t, '_> {
    pub(crate) fn new(tx: &'t mut Tx) -> Self {
        Self { tx, surroundings: PhantomData }
    }
}

impl Deref for Attempt<'_, '_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        self.tx
    }
}

impl DerefMut for Attempt<'_, '_> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.tx
    }
}
