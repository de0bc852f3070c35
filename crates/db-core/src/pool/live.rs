//! An open connection and the pool's data about it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;

use super::state::Checkout;
use crate::role::Role;
use crate::sql::HarmlessTexts;
use crate::status_query::QueryNumbers;
use crate::tracker::Session;

/// A connection and the pool's data about it. Boxed from the dial on, since each use moves it.
pub(crate) struct Live {
    pub(crate) raw: PgConnection,
    pub(crate) session: Arc<Session>,
    /// After this time, the connection is closed when it is returned, or when the keeper finds it idle.
    pub(crate) expires: Instant,
    /// When the connection was last returned.
    pub(crate) last_used: Instant,
    /// When the server last answered on it.
    pub(crate) last_seen: Instant,
    pub(crate) uses: u64,
    /// The pool's generation in which the link was last known to work.
    pub(crate) generation: u64,
    /// The pool's count of stale plans when the connection's plans were last made.
    pub(crate) plans: u64,
    /// Statements abandoned since the server last forgot all prepared statements.
    pub(crate) abandoned: u32,
    /// Statement texts that were classified before.
    pub(crate) harmless_texts: HarmlessTexts,
    /// The numbers of the status queries.
    pub(crate) numbers: QueryNumbers,
    /// The pool's count of stale types when the connection was dialled: the driver never forgets a type.
    pub(crate) types: u64,
    /// The server's role at the dial, or when it was last queried.
    pub(crate) role: Role,
    /// How long its dial took.
    pub(crate) dialled_in: Duration,
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
