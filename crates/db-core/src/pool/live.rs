//! An open connection, and what the pool knows of it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use sqlx::postgres::PgConnection;

use super::state::Checkout;
use crate::question::Numbers;
use crate::role::Role;
use crate::sql::Known;
use crate::tracker::Session;

/// A connection and what is known of it. In a box from the dial on, since it is moved with each use.
pub(crate) struct Live {
    pub(crate) raw: PgConnection,
    pub(crate) session: Arc<Session>,
    /// After this time, the connection is closed when it comes back, or when the keeper finds it idle.
    pub(crate) expires: Instant,
    /// When the connection was last given back.
    pub(crate) last_used: Instant,
    /// When the server last answered on it.
    pub(crate) last_seen: Instant,
    pub(crate) uses: u64,
    /// The pool's generation in which the link was last known to work.
    pub(crate) generation: u64,
    /// The pool's count of stale plans when the connection's own plans were last made.
    pub(crate) plans: u64,
    /// Statements that were cut off since the server last forgot all prepared statements.
    pub(crate) cut_off: u32,
    /// Texts that were judged before.
    pub(crate) known: Known,
    /// The numbers of the questions that ask where the session stands.
    pub(crate) numbers: Numbers,
    /// The pool's count of stale types when the connection was dialled: the driver never forgets a type.
    pub(crate) types: u64,
    /// What the server was at the dial, or when it was last asked.
    pub(crate) role: Role,
}

/// A connection in use.
pub(crate) struct CheckedOut {
    pub(super) live: Box<Live>,
    pub(super) checkout: Checkout,
}

impl Deref for CheckedOut {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl DerefMut for CheckedOut {
    fn deref_mut(&mut self) -> &mut Live {
        &mut self.live
    }
}
