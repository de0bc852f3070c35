//! What a transaction holds besides its session: savepoints, and what waits for the commit.

use std::sync::{Mutex, PoisonError};

use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::Session;
use crate::doubt::{Hook, When};
use crate::question::Standing;
use crate::statement::Transaction;

#[derive(Default)]
pub(crate) struct Nesting {
    /// The open savepoints, by their numbers on the server: never that of one before, which may be there still.
    savepoints: Vec<u32>,
    next_savepoint: u32,
    /// What was left without a word, and is undone before anything else is done.
    undo: Option<Undo>,
    /// Without those whose savepoint is undone. Never locked: the mutex makes them `Sync`.
    hooks: Mutex<Vec<Hook>>,
    pub(super) resolves_commit: bool,
}

/// How far to go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    /// The whole transaction.
    All,
    /// To the savepoint of this number, the outermost of those that were left.
    From(u32),
}

impl Nesting {
    fn hooks(&mut self) -> &mut Vec<Hook> {
        self.hooks.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A savepoint of a session, which is no longer there when the session was swapped for another one.
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

    /// Whether something was left that has to be undone first.
    pub(crate) fn has_to_undo(&self) -> bool {
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

    /// Leaves the hooks to whoever comes to know what the server has done.
    pub(super) fn leave_hooks_to_doubt(&mut self) {
        if let Some(nesting) = &mut self.nesting {
            self.state.doubt.add(std::mem::take(nesting.hooks()));
        }
    }

    /// Undoes what a dropped savepoint has left.
    pub(crate) async fn settle(&mut self) -> Result<(), sqlx::Error> {
        let Some(undo) = self.nesting.as_ref().and_then(|nesting| nesting.undo) else { return Ok(()) };
        match undo {
            Undo::All => self.undo_all().await,
            Undo::From(number) => self.undo_to(number).await,
        }
    }

    async fn undo_to(&mut self, number: u32) -> Result<(), sqlx::Error> {
        // What was cut off since is undone as well.
        self.give_up().await?;
        let name = savepoint_name(number);
        let sql = format!("ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}");
        self.control(AssertSqlSafe(sql).into_sql_str()).await?;
        self.nesting().undo = None;
        if self.state.transaction == Transaction::Aborted {
            // It was a statement since the savepoint that failed: in an aborted transaction none can be made.
            self.state.transaction = Transaction::Open;
            self.state.failure = None;
        }
        Ok(())
    }

    /// Ends the transaction whose end was cut off, or never came.
    async fn undo_all(&mut self) -> Result<(), sqlx::Error> {
        if !self.state.is_lent() {
            self.give_up().await?;
        }
        if self.ask().await? != Standing::Idle {
            self.control("ROLLBACK".into_sql_str()).await?;
        }
        self.transaction_ended();
        Ok(())
    }

    /// Makes a savepoint. Dropped before the answer, nothing was done since; a savepoint that nobody knows of does no harm.
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
        self.settle().await?;
        if !self.has_place(place) {
            return Err(sqlx::Error::Protocol("the savepoint is of another session".to_owned()));
        }
        self.control_savepoint("RELEASE SAVEPOINT", place.number).await?;
        self.keep_from(place);
        Ok(())
    }

    async fn control_savepoint(&mut self, what: &str, number: u32) -> Result<(), sqlx::Error> {
        let sql = format!("{what} {}", savepoint_name(number));
        self.control(AssertSqlSafe(sql).into_sql_str()).await
    }

    fn has_place(&self, Place { number, level }: Place) -> bool {
        self.nesting.as_ref().is_some_and(|nesting| nesting.savepoints.get(level - 1) == Some(&number))
    }

    /// Has everything since that savepoint undone before the next statement.
    pub(super) fn undo_from(&mut self, place: Place) {
        if !self.has_place(place) {
            return;
        }
        let nesting = self.nesting();
        // Numbers grow, so the outermost has the smallest.
        nesting.undo = match nesting.undo {
            Some(Undo::All) => Some(Undo::All),
            Some(Undo::From(other)) => Some(Undo::From(other.min(place.number))),
            None => Some(Undo::From(place.number)),
        };
        nesting.savepoints.truncate(place.level - 1);
        nesting.hooks().retain(|hook| hook.level < place.level);
    }

    /// Has the whole transaction undone before the next statement, if there is one.
    pub(super) fn undo_transaction(&mut self) {
        if self.state.transaction != Transaction::None {
            *self.nesting() = Nesting { undo: Some(Undo::All), ..Nesting::default() };
        }
    }

    /// Leaves what was done since that savepoint to the one around it.
    fn keep_from(&mut self, place: Place) {
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
