//! Savepoints and commit hooks of a transaction.

use std::sync::{Mutex, PoisonError};

use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::Session;
use crate::hooks::{Hook, When};
use crate::statement::Transaction;
use crate::status_query::TxStatus;

#[derive(Default)]
pub(crate) struct Nesting {
    /// The numbers of the open savepoints. A number is never used twice, since a savepoint with it may still exist on the server.
    savepoints: Vec<u32>,
    next_savepoint: u32,
    /// What dropped savepoints left behind, which is undone before the next statement.
    undo: Option<Undo>,
    /// The hooks of the transaction without those of undone savepoints. The mutex is never locked: it makes the value `Sync`.
    hooks: Mutex<Vec<Hook>>,
    pub(super) resolves_commit: bool,
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
}

/// A savepoint of a session. It is invalid if the session was swapped for another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    number: u32,
    level: usize,
}

impl Session {
    pub(super) fn nesting(&mut self) -> &mut Nesting {
        self.nesting.get_or_insert_default()
    }

    pub(super) fn resolves_commit(&self) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.resolves_commit)
    }

    /// Whether something must be undone before the next statement.
    pub(crate) fn has_pending_undo(&self) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.undo.is_some())
    }

    pub(crate) fn hook(&mut self, when: When, run: impl FnOnce() + Send + 'static) {
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
        let Some(undo) = self.nesting.as_ref().and_then(|nesting| nesting.undo) else { return Ok(()) };
        match undo {
            Undo::All => self.undo_all().await,
            Undo::From(number) => self.undo_to(number).await,
        }
    }

    async fn undo_to(&mut self, number: u32) -> Result<(), sqlx::Error> {
        // A statement abandoned since the savepoint is undone as well.
        self.drain_for_rollback().await?;
        let name = savepoint_name(number);
        let sql = format!("ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}");
        self.control(AssertSqlSafe(sql).into_sql_str()).await?;
        self.nesting().undo = None;
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

    /// Creates a savepoint. If the future is dropped before the answer, nothing has run since, and an unknown savepoint is harmless.
    pub(super) async fn make_savepoint(&mut self) -> Result<Place, sqlx::Error> {
        let nesting = self.nesting();
        let number = nesting.next_savepoint;
        nesting.next_savepoint += 1;
        self.control_savepoint("SAVEPOINT", number).await?;
        let savepoints = &mut self.nesting().savepoints;
        savepoints.push(number);
        Ok(Place { number, level: savepoints.len() })
    }

    pub(super) async fn release_savepoint(&mut self, place: Place) -> Result<(), sqlx::Error> {
        self.undo_pending().await?;
        if !self.has_place(place) {
            return Err(sqlx::Error::Protocol("the savepoint belongs to another session".to_owned()));
        }
        self.control_savepoint("RELEASE SAVEPOINT", place.number).await?;
        self.merge_into_outer(place);
        Ok(())
    }

    async fn control_savepoint(&mut self, what: &str, number: u32) -> Result<(), sqlx::Error> {
        let sql = format!("{what} {}", savepoint_name(number));
        self.control(AssertSqlSafe(sql).into_sql_str()).await
    }

    fn has_place(&self, Place { number, level }: Place) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.savepoints.get(level - 1) == Some(&number))
    }

    /// Schedules an undo of everything since that savepoint, before the next statement.
    pub(super) fn undo_from(&mut self, place: Place) {
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
    pub(super) fn undo_transaction(&mut self) {
        if self.state.transaction != Transaction::None {
            *self.nesting() = Nesting { undo: Some(Undo::All), ..Nesting::default() };
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
