//! Handles by key, up to a number of keys.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{OnceLock, PoisonError, RwLock};

/// Handles by key, up to a number of keys. All further keys share one handle.
#[derive(Debug)]
pub(crate) struct Kept<K, V> {
    most: usize,
    by_key: RwLock<HashMap<K, V>>,
    others: OnceLock<V>,
}

impl<K: Copy + Eq + Hash, V: Clone> Kept<K, V> {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, by_key: RwLock::default(), others: OnceLock::new() }
    }

    /// The handle of a key, made if there is none. `make` gets `None` for the handle of all further keys.
    pub(crate) fn get(&self, key: K, make: impl Fn(Option<K>) -> V) -> V {
        let known = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = known.get(&key) {
            return kept.clone();
        }
        let is_full = known.len() >= self.most;
        drop(known);
        if is_full {
            return self.others.get_or_init(|| make(None)).clone();
        }
        // Without the lock, since the recorder has locks of its own.
        let handle = make(Some(key));
        let mut all = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() < self.most || all.contains_key(&key) {
            return all.entry(key).or_insert(handle).clone();
        }
        drop(all);
        self.others.get_or_init(|| make(None)).clone()
    }

    /// All handles.
    pub(crate) fn all(&self) -> Vec<V> {
        let known = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        known.values().chain(self.others.get()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_handle_is_made_once_for_a_key_and_keys_beyond_the_most_share_one() {
        let kept = Kept::new(2);
        let count = Cell::new(0);
        let make = |key: Option<u32>| {
            count.set(count.get() + 1);
            key
        };
        let of = |key| kept.get(key, make);

        assert_eq!([1, 2, 1, 2].map(of), [Some(1), Some(2), Some(1), Some(2)]);
        assert_eq!(count.get(), 2);
        assert_eq!([3, 4, 1].map(of), [None, None, Some(1)]);
        assert_eq!((count.get(), kept.all().len()), (3, 3));
    }
}
