//! The list of those who hear what happens.

use std::sync::{Arc, OnceLock};

/// Observers of a kind: a list to which anybody may add, and which nobody locks.
#[derive(Debug)]
pub struct Observers<O: ?Sized> {
    first: OnceLock<Box<Entry<O>>>,
}

#[derive(Debug)]
struct Entry<O: ?Sized> {
    observer: Arc<O>,
    rest: Observers<O>,
}

impl<O: ?Sized> Default for Observers<O> {
    fn default() -> Self {
        Self { first: OnceLock::new() }
    }
}

impl<O: ?Sized> Observers<O> {
    /// Adds an observer to the end.
    pub fn add(&self, observer: Arc<O>) {
        let mut list = self;
        let mut entry = Box::new(Entry { observer, rest: Self::default() });
        while let Err(unset) = list.first.set(entry) {
            entry = unset;
            // Set, or the entry would be there now.
            let Some(taken) = list.first.get() else { return };
            list = &taken.rest;
        }
    }

    /// Whether nobody listens.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.get().is_none()
    }

    /// Reports to each observer, in the order in which they were added.
    #[inline]
    pub fn report(&self, tell: impl Fn(&O)) {
        let mut next = &self.first;
        while let Some(entry) = next.get() {
            tell(&entry.observer);
            next = &entry.rest.first;
        }
    }
}

impl<O: ?Sized> FromIterator<Arc<O>> for Observers<O> {
    fn from_iter<I: IntoIterator<Item = Arc<O>>>(observers: I) -> Self {
        let list = Self::default();
        for observer in observers {
            list.add(observer);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each observer of the list says, in order.
    fn heard(observers: &Observers<u32>) -> Vec<u32> {
        let heard = std::cell::RefCell::default();
        observers.report(|observer| Vec::push(&mut heard.borrow_mut(), *observer));
        heard.into_inner()
    }

    #[test]
    fn all_observers_hear_each_report_in_the_order_in_which_they_came() {
        let observers = Observers::default();
        assert!(observers.is_empty());
        for number in 0..3 {
            observers.add(Arc::new(number));
        }

        assert!(!observers.is_empty());
        assert_eq!(heard(&observers), [0, 1, 2]);
    }

    #[test]
    fn observers_that_are_added_at_once_are_all_there() {
        let observers = Observers::default();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let observers = &observers;
                scope.spawn(move || observers.add(Arc::new(number)));
            }
        });

        let mut heard = heard(&observers);
        heard.sort_unstable();
        assert_eq!(heard, (0..8).collect::<Vec<u32>>());
    }
}
