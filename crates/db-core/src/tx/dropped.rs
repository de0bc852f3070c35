//! Scopes of a transaction that are dropped without access to its session.

use std::sync::{Arc, Mutex, PoisonError};

use super::Scope;

/// The dropped scopes of one transaction, until its session undoes them. Each transaction has its own list: a handle compares lists to
/// find out whether the session's transaction is still the handle's.
#[derive(Debug, Clone, Default)]
pub(crate) struct DroppedScopes(Arc<Mutex<Vec<Scope>>>);

impl DroppedScopes {
    /// Schedules an undo of the scope, before the session's next statement.
    pub(crate) fn add(&self, scope: Scope) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(scope);
    }

    pub(super) fn take(&self) -> Vec<Scope> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl PartialEq for DroppedScopes {
    /// Whether both belong to one transaction.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
