//! Savepoints and commit hooks of a transaction.

use std::sync::{Mutex, PoisonError};

use sqlx::{AssertSqlSafe, SqlSafeStr};

#[cfg(feature = "sea-orm")]
use super::dropped::DroppedScopes;
use crate::deadline::Deadline;
use crate::hooks::{Hook, When};
use crate::statement::Transaction;
use crate::status_query::TxStatus;
use crate::{Error, Session};

#[derive(Default)]
pub(crate) struct Nesting {
    /// The numbers of the open savepoints. A number is never used twice, since a savepoint with it may still exist on the server.
    savepoints: Vec<u32>,
    next_savepoint: u32,
    /// A savepoint that was released and still exists on the server. The message that creates the next savepoint releases it there: a
    /// release of its own would cost a round trip, and an abandoned one may or may not have been executed. None if a statement since may
    /// have ended the savepoint, together with one of the program's own: the end of the transaction releases it then.
    released: Option<u32>,
    /// What dropped savepoints left behind, which is undone before the next statement.
    undo: Option<Undo>,
    /// The hooks of the transaction without those of undone savepoints. The mutex is never locked: it makes the value `Sync`.
    hooks: Mutex<Vec<Hook>>,
    pub(super) resolves_commit: bool,
    /// The caller's deadline, which counts again after the transaction.
    pub(super) callers_deadline: Option<Deadline>,
    #[cfg(feature = "sea-orm")]
    dropped: DroppedScopes,
}

/// Work on a session that can be undone alone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope {
    /// A whole transaction.
    Transaction,
    Savepoint(Place),
}

/// What to undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    /// The whole transaction.
    All,
    /// Everything since the savepoint of this number, the outermost of the dropped ones.
    From(u32),
}

impl Nesting {
    fn hooks(&mut self) -> &mut Vec<Hook> {
        self.hooks.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a scope was dropped without the session, and is not undone yet.
    #[cfg_attr(
        not(feature = "sea-orm"),
        expect(clippy::unused_self, reason = "only scopes of SeaORM are dropped without the session")
    )]
    fn has_dropped(&self) -> bool {
        #[cfg(feature = "sea-orm")]
        return !self.dropped.is_empty();
        #[cfg(not(feature = "sea-orm"))]
        false
    }
}

/// A savepoint of a session. It is invalid if the session was swapped for another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    number: u32,
    level: usize,
}

impl Session {
    pub(crate) fn nesting(&mut self) -> &mut Nesting {
        self.nesting.get_or_insert_default()
    }

    pub(super) fn resolves_commit(&self) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.resolves_commit)
    }

    /// Whether something must be undone before the next statement.
    pub(crate) fn has_pending_undo(&self) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.undo.is_some() || nesting.has_dropped())
    }

    pub(crate) fn hook(&mut self, when: When, run: impl FnOnce() + Send + 'static) {
        // Otherwise the hook would belong to a scope that was dropped before.
        self.take_dropped();
        let is_over = self.nesting.as_ref().is_some_and(|nesting| nesting.undo == Some(Undo::All));
        if self.state.transaction == Transaction::None || is_over {
            return run();
        }
        let nesting = self.nesting();
        let level = nesting.savepoints.len();
        nesting.hooks().push(Hook { level, when, run: Box::new(run) });
    }

    /// Makes the hooks depend on the outcome of the statement in flight.
    pub(super) fn make_hooks_pending(&mut self) {
        if let Some(nesting) = &mut self.nesting {
            self.state.pending_hooks.add(std::mem::take(nesting.hooks()));
        }
    }

    /// Undoes what dropped savepoints left behind.
    pub(crate) async fn undo_pending(&mut self) -> Result<(), sqlx::Error> {
        self.take_dropped();
        let Some(undo) = self.nesting.as_ref().and_then(|nesting| nesting.undo) else { return Ok(()) };
        match undo {
            Undo::All => self.undo_all().await,
            Undo::From(number) => self.undo_to(number).await,
        }
    }

    async fn undo_to(&mut self, number: u32) -> Result<(), sqlx::Error> {
        // A statement abandoned since the savepoint is undone as well.
        self.drain_for_rollback().await?;
        // The savepoint stays on the server, so that the statement may be sent again after it was abandoned.
        let sql = format!("ROLLBACK TO SAVEPOINT {}", savepoint_name(number));
        self.control(AssertSqlSafe(sql).into_sql_str()).await?;
        let nesting = self.nesting();
        nesting.undo = None;
        nesting.released = Some(number);
        if self.state.transaction == Transaction::Aborted {
            // The failed statement came after the savepoint, since an aborted transaction accepts no savepoint.
            self.state.transaction = Transaction::Open;
            self.state.failure = None;
        }
        Ok(())
    }

    /// Rolls back a transaction whose scope was dropped.
    async fn undo_all(&mut self) -> Result<(), sqlx::Error> {
        if !self.state.is_lent() {
            self.drain_for_rollback().await?;
        }
        if self.status().await? != TxStatus::Idle {
            self.control("ROLLBACK".into_sql_str()).await?;
        }
        self.transaction_ended();
        Ok(())
    }

    /// Records that a statement may end savepoints that this crate does not know of, and ours inside them.
    pub(crate) fn savepoints_may_end(&mut self) {
        if let Some(nesting) = &mut self.nesting {
            nesting.released = None;
        }
    }

    /// Creates a savepoint. If the future is dropped before the answer, nothing has run since, and an unknown savepoint is harmless.
    pub(crate) async fn make_savepoint(&mut self) -> Result<Place, sqlx::Error> {
        let nesting = self.nesting();
        let number = nesting.next_savepoint;
        nesting.next_savepoint += 1;
        let mut sql = String::new();
        if let Some(released) = nesting.released.take() {
            sql = format!("RELEASE SAVEPOINT {}; ", savepoint_name(released));
        }
        sql = format!("{sql}SAVEPOINT {}", savepoint_name(number));
        self.control_within(AssertSqlSafe(sql).into_sql_str(), self.limit()).await?;
        let savepoints = &mut self.nesting().savepoints;
        savepoints.push(number);
        Ok(Place { number, level: savepoints.len() })
    }

    async fn release_savepoint(&mut self, place: Place) -> Result<(), Error> {
        self.make_ready().await?;
        if !self.has_place(place) {
            return Err(sqlx::Error::Protocol("the savepoint belongs to another session".to_owned()).into());
        }
        if self.state.unseen && self.state.transaction == Transaction::Open {
            self.check_aborted().await?;
        }
        if self.state.transaction == Transaction::Aborted {
            // The server refuses the release with 25P02.
            let sql = format!("RELEASE SAVEPOINT {}", savepoint_name(place.number));
            self.control(AssertSqlSafe(sql).into_sql_str()).await?;
        }
        self.nesting().released = Some(place.number);
        self.merge_into_outer(place);
        Ok(())
    }

    fn has_place(&self, Place { number, level }: Place) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.savepoints.get(level - 1) == Some(&number))
    }

    /// Keeps the work of a scope, and commits it if that is a transaction.
    pub(crate) async fn release(&mut self, scope: Scope) -> Result<(), Error> {
        match scope {
            Scope::Transaction => {
                self.get_ready_to_commit().await?;
                self.send_commit().await
            }
            Scope::Savepoint(place) => self.release_savepoint(place).await,
        }
    }

    /// Undoes the work of a scope.
    pub(crate) async fn roll_back_to(&mut self, scope: Scope) -> Result<(), Error> {
        match scope {
            Scope::Transaction => self.roll_back().await,
            Scope::Savepoint(place) => {
                self.undo_from(place);
                Ok(self.undo_pending().await?)
            }
        }
    }

    /// Schedules an undo of the work of a scope, before the next statement.
    pub(crate) fn undo(&mut self, scope: Scope) {
        match scope {
            Scope::Transaction => self.undo_transaction(),
            Scope::Savepoint(place) => self.undo_from(place),
        }
    }

    /// Schedules an undo of the scopes that were dropped without the session.
    #[cfg_attr(
        not(feature = "sea-orm"),
        expect(clippy::unused_self, reason = "only scopes of SeaORM are dropped without the session")
    )]
    fn take_dropped(&mut self) {
        #[cfg(feature = "sea-orm")]
        for scope in self.nesting.as_ref().map(|nesting| nesting.dropped.take()).unwrap_or_default() {
            self.undo(scope);
        }
    }

    /// The list of the scopes of this transaction that are dropped without the session.
    #[cfg(feature = "sea-orm")]
    pub(crate) fn dropped_scopes(&mut self) -> DroppedScopes {
        self.nesting().dropped.clone()
    }

    /// Whether a scope of the transaction with that list is still open.
    #[cfg(feature = "sea-orm")]
    pub(crate) fn has_scope(&mut self, scope: Scope, dropped: &DroppedScopes) -> bool {
        self.take_dropped();
        let is_same = self.nesting.as_ref().is_some_and(|nesting| nesting.dropped == *dropped);
        is_same
            && match scope {
                Scope::Transaction => true,
                Scope::Savepoint(place) => self.has_place(place),
            }
    }

    /// Schedules an undo of everything since that savepoint, before the next statement.
    fn undo_from(&mut self, place: Place) {
        if !self.has_place(place) {
            return;
        }
        let nesting = self.nesting();
        // Numbers grow, so the outermost savepoint has the smallest.
        nesting.undo = match nesting.undo {
            Some(Undo::All) => Some(Undo::All),
            Some(Undo::From(other)) => Some(Undo::From(other.min(place.number))),
            None => Some(Undo::From(place.number)),
        };
        nesting.savepoints.truncate(place.level - 1);
        nesting.hooks().retain(|hook| hook.level < place.level);
    }

    /// Schedules a rollback of the whole transaction, if there is one, before the next statement.
    fn undo_transaction(&mut self) {
        if self.state.transaction != Transaction::None {
            let callers_deadline = self.nesting().callers_deadline;
            *self.nesting() = Nesting { undo: Some(Undo::All), callers_deadline, ..Nesting::default() };
        }
    }

    /// Merges the work since that savepoint into the level around it.
    fn merge_into_outer(&mut self, place: Place) {
        let nesting = self.nesting();
        nesting.savepoints.truncate(place.level - 1);
        for hook in nesting.hooks() {
            hook.level = hook.level.min(place.level - 1);
        }
    }
}

fn savepoint_name(number: u32) -> String {
    format!("db_core_{number}")
}
