//! The sessions of a pool.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use crate::tracker::Session;

/// The sessions that the pool has begun. A lock of its own: a search through all of them keeps nobody from taking a connection or giving
/// it back.
#[derive(Debug, Default)]
pub(super) struct Sessions(RwLock<Vec<Weak<Session>>>);

impl Sessions {
    /// Adds a session, and forgets those that are gone.
    pub(super) fn add(&self, session: &Arc<Session>) {
        let mut sessions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(session));
    }

    /// The sessions that still exist.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// The first answer that one of the sessions gives.
    pub(super) fn find<T>(&self, answer: impl Fn(&Session) -> Option<T>) -> Option<T> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sessions.iter().filter_map(Weak::upgrade).find_map(|session| answer(&session))
    }
}
