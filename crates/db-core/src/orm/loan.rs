//! A session that several handles of `SeaORM` share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::time::timeout;

use super::error::OrmError;
use crate::call_site::CallSite;
use crate::deadline::{Deadline, WaitLimit};
use crate::{Conn, DeadlineError, Error, PoolOptions, Session};

/// A shared session. One statement at a time uses it.
pub(super) struct Loan<S> {
    seat: Arc<Mutex<S>>,
    pool: Arc<str>,
    /// How long a statement may wait for another one.
    patience: Duration,
    /// Where `orm` was called.
    at: CallSite,
}

/// Where a session is.
pub trait Seat: Send {
    /// The session, while it is there.
    fn session(&mut self) -> Option<&mut Session>;

    /// Releases the connection after the end of a transaction.
    fn leave(&mut self);
}

/// A connection acquired from a pool for a transaction of `SeaORM`.
#[derive(Debug)]
pub struct Own(
    /// None after the end of the transaction.
    Option<Conn>,
);

impl Seat for Own {
    fn session(&mut self) -> Option<&mut Session> {
        self.0.as_deref_mut()
    }

    fn leave(&mut self) {
        self.0 = None;
    }
}

/// A session that its owner uses again afterwards.
#[derive(Debug)]
pub struct Lent<'s>(&'s mut Session);

impl Seat for Lent<'_> {
    fn session(&mut self) -> Option<&mut Session> {
        Some(self.0)
    }

    fn leave(&mut self) {}
}

impl Loan<Own> {
    pub(super) fn of_conn(conn: Conn) -> Self {
        let at = conn.at;
        let inner = Arc::clone(conn.inner());
        Self::new(Own(Some(conn)), &inner.options, at)
    }
}

impl<'s> Loan<Lent<'s>> {
    pub(super) fn of(session: &'s mut Session, at: CallSite) -> Self {
        let inner = Arc::clone(session.inner());
        Self::new(Lent(session), &inner.options, at)
    }
}

impl<S: Seat> Loan<S> {
    fn new(seat: S, options: &PoolOptions, at: CallSite) -> Self {
        let (pool, patience) = (options.name.as_str().into(), options.statement_timeout);
        Self { seat: Arc::new(Mutex::new(seat)), pool, patience, at }
    }

    /// Waits until no other statement uses the session.
    pub(super) async fn session(&self) -> Result<MappedMutexGuard<'_, Session>, Error> {
        MutexGuard::try_map(self.seat().await?, S::session).map_err(|_| self.ended())
    }

    /// The same, for an end.
    pub(super) async fn seat(&self) -> Result<MutexGuard<'_, S>, Error> {
        if let Ok(seat) = self.seat.try_lock() {
            return Ok(seat);
        }
        let busy = |_| DeadlineError::of_busy(&self.pool, self.at, self.patience);
        Ok(timeout(self.patience, self.seat.lock()).await.map_err(busy)?)
    }

    /// The error of a transaction that missed its deadline.
    pub(super) fn late(&self, ends: Option<Deadline>) -> Error {
        let limit = ends.map_or(WaitLimit::of_statement(self.patience), |ends| ends.limit());
        DeadlineError::new(&self.pool, self.at, limit).into()
    }

    /// The error of a scope that has ended.
    pub(super) fn ended(&self) -> Error {
        OrmError::ended(&self.pool, self.at).into()
    }
}

impl<S> Clone for Loan<S> {
    fn clone(&self) -> Self {
        let Self { seat, pool, patience, at } = self;
        Self { seat: Arc::clone(seat), pool: Arc::clone(pool), patience: *patience, at: *at }
    }
}

impl<S> fmt::Debug for Loan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("pool", &self.pool).field("at", &self.at).finish_non_exhaustive()
    }
}
