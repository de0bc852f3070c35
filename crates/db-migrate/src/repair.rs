//! What a person has decided about a migration that was cut off.

use db_core::{Config, ConnectRetry};

use crate::history::{Action, NOT_APPLIED, Noted};
use crate::progress::Progress;
use crate::statements;
use crate::status::State;
use crate::table::{bytes, literal};
use crate::{Error, Migrations, session};

/// What is true of a migration that is on record as begun and not ended. See [`Migrations::repair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// The statement that was cut off is done: the next run goes on after it.
    StatementDone,
    /// The statement that was cut off is not done, and nothing is left of it: the next run begins with it.
    StatementUndone,
    /// The whole migration is applied.
    Applied,
    /// The migration is not applied, and nothing is left of it.
    NotApplied,
}

impl Repair {
    /// Its name in the history.
    fn name(self) -> &'static str {
        match self {
            Self::StatementDone => "statement done",
            Self::StatementUndone => "statement undone",
            Self::Applied => "applied",
            Self::NotApplied => NOT_APPLIED,
        }
    }
}

impl Migrations {
    /// Records what a person has found out about a migration that was cut off ([`Error::Interrupted`], [`Error::Dirty`],
    /// [`Error::Edited`]). Runs nothing of the migration.
    ///
    /// # Errors
    ///
    /// [`Error::NothingToRepair`] if no such migration, or no such statement, was cut off; else as [`Migrations::up`]. No record is
    /// changed then.
    pub async fn repair(&self, config: &Config, version: i64, repair: Repair) -> Result<(), Error> {
        crate::run::refuse_pooler(config)?;
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let mut steps = self.begin(&mut connection, config).await?;
        let look = self.read(steps.connection).await?;
        let nothing = || Error::NothingToRepair { version };
        let status = look.statuses.iter().find(|status| status.version == version);
        let status = status.filter(|status| matches!(status.state, State::UnderWay | State::Dirty));
        let description = status.ok_or_else(nothing)?.description.clone();
        let table = steps.table.clone();
        let progress = steps.progress(version).await?;
        let end = if progress.is_some() { Progress::end(&table, version) } else { String::new() };
        let changes = match repair {
            Repair::Applied => {
                // As the file is now: it may have been edited.
                let file = self.file(version, false).map(|file| {
                    format!(
                        ", description = {}, checksum = {}",
                        literal(&file.description),
                        bytes(&file.checksum)
                    )
                });
                let file = file.unwrap_or_default();
                format!("update {} set success = true{file} where version = {version}; {end}", table.name)
            }
            Repair::NotApplied => format!("delete from {} where version = {version}; {end}", table.name),
            Repair::StatementDone | Repair::StatementUndone => {
                let progress = progress.filter(|progress| progress.has_begun).ok_or_else(nothing)?;
                let file = self.file(version, progress.reverts).ok_or_else(nothing)?;
                let all = statements::steps(file);
                let begun = all.get(..=progress.done).map(statements::digest);
                if !begun.is_some_and(|begun| progress.is_of(&begun)) {
                    return Err(Error::Edited { version, statements: progress.done + 1 });
                }
                let done = progress.done + usize::from(repair == Repair::StatementDone);
                Progress::done(&table, version, done, &statements::digest(&all[..done]), 0)
            }
        };
        let is_applied = repair == Repair::Applied;
        let file = self.file(version, false).filter(|_| is_applied);
        let way_back = self.file(version, true).filter(|_| is_applied);
        let noted = [Noted { version, description: &description, file, way_back }];
        let history = steps.history.as_mut();
        let history = history.map(|it| it.noted(Action::Repaired, Some(repair.name()), &noted));
        let changes = changes + &history.unwrap_or_default();
        steps.record(version, "repair a migration", &changes).await?;
        steps.close().await;
        tracing::info!(version, ?repair, "a migration is repaired");
        crate::run::close(connection).await;
        Ok(())
    }
}
