//! What belongs to a pool without being its own: the bus, the keyring.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// One value of each type. It lets a handle and a transaction reach what layers above this one are made of, without a
/// global, and without this layer knowing of them.
#[derive(Default)]
pub(crate) struct Companions(RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl Companions {
    pub(crate) fn put<T: Any + Send + Sync>(&self, value: Arc<T>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(TypeId::of::<T>(), value);
    }

    pub(crate) fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&TypeId::of::<T>()).cloned();
        found?.downcast().ok()
    }
}

impl fmt::Debug for Companions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Companions").finish_non_exhaustive()
    }
}
