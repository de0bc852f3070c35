//! How a database stands against a program's migrations, in numbers: for health and metrics.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::postgres::PgConnection;

use crate::history::{self, Action, Attempt, Outcome};
use crate::look::newest;
use crate::status::{State, Status};
use crate::table::Table;
use crate::{Error, Migrations, Repeatable};

/// How a database stands against a program's migrations, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The newest version on record, 0 if none is.
    pub current: i64,
    /// The newest version that the program has, 0 without any.
    pub supported: i64,
    /// Files that are not applied, or say something new if they are repeatable.
    pub pending: usize,
    /// Files that were changed after they were applied, by more than comments and formatting.
    pub changed: usize,
    /// Versions on record that the program does not have.
    pub unknown: usize,
    /// Versions that have begun and not ended, by this crate or by another migrator.
    pub under_way: usize,
    /// Files whose last attempt, up, down or again, has failed.
    pub failed: usize,
}

impl Migrations {
    /// How a database stands against these migrations. Takes no lock and changes nothing, and needs no session of its own: it may be called
    /// again and again on a connection that is kept.
    ///
    /// Not cancel safe: after the future was dropped, close the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], or [`Error::NewerHistory`].
    pub async fn summary(&self, connection: &mut PgConnection) -> Result<Summary, Error> {
        let look = self.read(connection).await?;
        let attempts = match Table::find(connection, &self.migrator.table_name).await? {
            Some(table) if table.history.is_readable() => history::read(connection, &table).await?,
            _ => Vec::new(),
        };
        let is_pending = |file: &Repeatable| file.state == State::Pending && !look.hides_repeated;
        let to_repeat = self.repeatables(&look).iter().filter(|file| is_pending(file)).count();
        let count = |states: &[State]| {
            look.statuses.iter().filter(|status: &&Status| states.contains(&status.state)).count()
        };
        Ok(Summary {
            current: newest(look.statuses.iter()),
            supported: self.supported_version(),
            pending: count(&[State::Pending]) + to_repeat,
            changed: count(&[State::Changed]),
            unknown: count(&[State::Unknown]),
            under_way: count(&[State::UnderWay, State::Dirty]),
            failed: failed(&attempts),
        })
    }
}

/// The files whose last attempt has failed. `attempts` are in their order.
fn failed(attempts: &[Attempt]) -> usize {
    let mut last = HashMap::new();
    for attempt in attempts {
        // A repeatable file has a name, and the version of others.
        let name = (attempt.action == Action::Repeat).then_some(&*attempt.description);
        let version = if name.is_some() { 0 } else { attempt.version };
        last.insert((version, name), attempt.outcome);
    }
    last.values().filter(|outcome| **outcome == Outcome::Failed).count()
}
