//! How a database stands against a program's migrations, in numbers: for health and metrics.

use serde::Serialize;
use sqlx::postgres::PgConnection;

use crate::history::{self, Last, Outcome};
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
    /// Files that are not applied, or say something new if they are repeatable. Those of a database that is newer than the program are not
    /// counted among the latter.
    pub pending: usize,
    /// Files that were changed after they were applied, by more than comments and formatting.
    pub changed: usize,
    /// Versions on record that the program does not have.
    pub unknown: usize,
    /// Versions that have begun and not ended, by this crate or by another migrator.
    pub under_way: usize,
    /// Files of the program whose last attempt, up, down or again, has failed.
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
    /// [`Error::Database`].
    pub async fn summary(&self, connection: &mut PgConnection) -> Result<Summary, Error> {
        let look = self.read(connection).await?;
        let last = match Table::find(connection, &self.migrator.table_name).await? {
            Some(table) => history::last(connection, &table).await?,
            None => Vec::new(),
        };
        let current = newest(look.statuses.iter());
        // Those of a newer database are its program's.
        let are_ours = current <= self.supported_version() && !look.hides_repeated;
        let is_pending = |file: &Repeatable| file.state == State::Pending && are_ours;
        let to_repeat = self.repeatables(&look).iter().filter(|file| is_pending(file)).count();
        let is_known = |file: &Last| match &file.name {
            Some(name) => self.repeatables.contains_key(name),
            None => self.file(file.version, false).is_some(),
        };
        let has_failed = |file: &&Last| file.outcome == Outcome::Failed && is_known(file);
        let count = |states: &[State]| {
            look.statuses.iter().filter(|status: &&Status| states.contains(&status.state)).count()
        };
        Ok(Summary {
            current,
            supported: self.supported_version(),
            pending: count(&[State::Pending]) + to_repeat,
            changed: count(&[State::Changed]),
            unknown: count(&[State::Unknown]),
            under_way: count(&[State::UnderWay, State::Dirty]),
            failed: last.iter().filter(has_failed).count(),
        })
    }
}
