//! Changes of the record that run nothing of a migration.

use std::fmt::Write;

use db_core::{Config, ConnectRetry};
use sqlx::migrate::Migration;

use crate::history::{Action, Noted};
use crate::run::{close, refuse_pooler};
use crate::status::State;
use crate::step::Steps;
use crate::table::{bytes, literal};
use crate::{Error, Migrations, session};

impl Migrations {
    /// Puts the checksums of changed files on record, so that sqlx takes them again: of those named, or, if none is, of all
    /// whose comments or formatting alone were changed ([`State::Reformatted`]). The history keeps the reason. Returns the versions.
    ///
    /// A named version is taken whatever was changed, since a person answers for it: nothing of the file is run. Programs that were built with
    /// the former files refuse the database afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::NothingToRebless`] if a named version is not applied, or its file is the one on record; else as [`Migrations::up`].
    pub async fn rebless(&self, config: &Config, versions: &[i64], reason: &str) -> Result<Vec<i64>, Error> {
        refuse_pooler(config)?;
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let mut steps = self.begin(&mut connection, config).await?;
        let look = self.read(steps.connection).await?;
        steps.catch_up(&look).await?;
        let in_state = |states: &[State]| -> Vec<i64> {
            let those = look.statuses.iter().filter(|status| states.contains(&status.state));
            those.map(|status| status.version).collect()
        };
        let differing = in_state(&[State::Reformatted, State::Changed]);
        if let Some(version) = versions.iter().find(|version| !differing.contains(version)) {
            return Err(Error::NothingToRebless { version: *version });
        }
        let versions = if versions.is_empty() { in_state(&[State::Reformatted]) } else { versions.to_vec() };

        let files: Vec<_> = versions.iter().filter_map(|version| self.file(*version, false)).collect();
        let mut changes = String::new();
        for file in &files {
            // Writing to a string does not fail.
            let _ = write!(
                changes,
                "update {} set checksum = {}, description = {} where version = {};",
                steps.table.name,
                bytes(&file.checksum),
                literal(&file.description),
                file.version
            );
        }
        self.note(&mut steps, Action::Reblessed, reason, &files, changes).await?;
        steps.close().await;
        close(connection).await;
        Ok(versions)
    }

    /// Puts all pending migrations up to a version on record as applied, without running them: for a database that has their tables
    /// already. Returns the versions. The history keeps the reason.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVersion`]; else as [`Migrations::up`]. Nothing is changed then.
    pub async fn baseline(&self, config: &Config, version: i64, reason: &str) -> Result<Vec<i64>, Error> {
        if self.file(version, false).is_none() {
            return Err(Error::NoSuchVersion { version });
        }
        refuse_pooler(config)?;
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let mut steps = self.begin(&mut connection, config).await?;
        let statuses = self.checked(&mut steps, &[], false).await?.statuses;
        let pending = statuses.iter().filter(|it| it.state == State::Pending && it.version <= version);
        let files: Vec<_> = pending.filter_map(|status| self.file(status.version, false)).collect();

        let mut changes = String::new();
        for file in &files {
            // Writing to a string does not fail.
            let _ = write!(
                changes,
                "insert into {} (version, description, success, checksum, execution_time) values ({}, {}, true, {}, 0);",
                steps.table.name,
                file.version,
                literal(&file.description),
                bytes(&file.checksum)
            );
        }
        self.note(&mut steps, Action::Baseline, reason, &files, changes).await?;
        let versions = files.iter().map(|file| file.version).collect();
        steps.close().await;
        close(connection).await;
        Ok(versions)
    }
    /// Changes sqlx's table and the history in one transaction, if there is anything to change.
    async fn note(
        &self,
        steps: &mut Steps<'_>,
        action: Action,
        reason: &str,
        files: &[&Migration],
        mut changes: String,
    ) -> Result<(), Error> {
        let Some(first) = files.first() else { return Ok(()) };
        let noted: Vec<_> = files.iter().map(|file| Noted::of(file, self.file(file.version, true))).collect();
        if let Some(history) = &mut steps.history {
            changes += &history.noted(action, Some(reason), &noted);
        }
        steps.record(first.version, "change what is on record", &changes).await
    }
}
