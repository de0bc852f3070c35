//! What is on record, compared with the files, and what of it is refused.

use db_core::{Config, ConnectRetry};
use sqlx::migrate::{Migration, MigrationType};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::history::{self, Attempt};
use crate::run::close;
use crate::status::{self, Look, State, Status};
use crate::step::{Steps, is_missing_table};
use crate::table::Table;
use crate::{Edits, Error, Migrations, contents, files, session, statements};

/// How often the records are read when tables come and go meanwhile.
const LOOKS: u32 = 3;

impl Migrations {
    /// The newest version on record in a database, 0 if none is. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Migrations::status`].
    pub async fn current_version(&self, config: &Config) -> Result<i64, Error> {
        Ok(newest(self.status(config).await?.iter()))
    }

    /// Compares a database with these migrations, in order of versions. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] or [`Error::Database`].
    pub async fn status(&self, config: &Config) -> Result<Vec<Status>, Error> {
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let look = self.read(&mut connection).await?;
        close(connection).await;
        Ok(look.statuses)
    }

    /// What was done to the migrations of a database, in its order. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Database`], or [`Error::NewerHistory`].
    pub async fn history(&self, config: &Config) -> Result<Vec<Attempt>, Error> {
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let table = Table::find(&mut connection, &self.migrator.table_name).await?;
        let attempts = match table {
            Some(table) => history::read(&mut connection, &table).await?,
            None => Vec::new(),
        };
        close(connection).await;
        Ok(attempts)
    }

    pub(crate) async fn read(&self, connection: &mut PgConnection) -> Result<Look, Error> {
        for _ in 1..LOOKS {
            let table = Table::find(connection, &self.migrator.table_name).await?;
            let has_progress = table.as_ref().is_some_and(|table| table.has_progress);
            match status::read(connection, table.as_ref(), self.ups()).await {
                // The table of progress was dropped meanwhile, with the end of a run.
                Err(Error::Database { cause, .. }) if is_missing_table(&cause) => {}
                // Or it was made meanwhile.
                Ok(look) if !has_progress && look.statuses.iter().any(|it| it.state == State::Dirty) => {}
                read => return read,
            }
        }
        let table = Table::find(connection, &self.migrator.table_name).await?;
        status::read(connection, table.as_ref(), self.ups()).await
    }

    /// Reads the records, refuses what the front page lists, and records what others have done.
    pub(crate) async fn checked(
        &self,
        steps: &mut Steps<'_>,
        allowed: &[State],
        allows_newer: bool,
    ) -> Result<Look, Error> {
        let look = self.read(steps.connection).await?;
        self.check(steps.connection, &look.statuses, allowed, allows_newer).await?;
        // What is gone may have taken with it what repeatable files make.
        if steps.catch_up(&look).await? { self.read(steps.connection).await } else { Ok(look) }
    }

    /// Refuses what the front page lists, but for these states.
    pub(crate) async fn check(
        &self,
        connection: &mut PgConnection,
        statuses: &[Status],
        allowed: &[State],
        allows_newer: bool,
    ) -> Result<(), Error> {
        match self.problems(statuses, allowed, allows_newer).into_iter().next() {
            Some(problem) => Err(self.with_difference(connection, problem).await?),
            None => Ok(()),
        }
    }

    /// An error about a changed file shows the difference, if the database has on record what was applied.
    pub(crate) async fn with_difference(
        &self,
        connection: &mut PgConnection,
        problem: Error,
    ) -> Result<Error, Error> {
        let Error::Changed { version, .. } = problem else { return Ok(problem) };
        let table = Table::find(connection, &self.migrator.table_name).await?;
        let applied = match table {
            Some(table) => history::applied_sql(connection, &table, version).await?,
            None => None,
        };
        let file = self.file(version, false).map(|file| file.sql.as_str());
        let difference = applied.zip(file).map(|(applied, file)| contents::difference(&applied, file));
        Ok(Error::Changed { version, difference })
    }

    /// What stops a run, but for these states. A newer database is none if it is allowed: what is pending
    /// is older than its versions then, and a problem of its own.
    pub(crate) fn problems(&self, statuses: &[Status], allowed: &[State], allows_newer: bool) -> Vec<Error> {
        let statuses = || statuses.iter().filter(|status| !allowed.contains(&status.state));
        let newest = newest(statuses());
        let problem = |&Status { version, state, .. }: &Status| match state {
            State::Unknown if allows_newer && version > self.supported_version() => None,
            State::Unknown => Some(Error::Unknown { version }),
            State::UnderWay if self.file(version, false).is_none() && !allowed.contains(&State::Unknown) => {
                Some(Error::Unknown { version })
            }
            State::Changed => Some(Error::Changed { version, difference: None }),
            State::Reformatted if self.edits == Edits::Refuse => Some(Error::Reformatted { version }),
            State::Dirty => Some(Error::Dirty { version }),
            State::Pending if version < newest => Some(Error::OutOfOrder { version, newest }),
            State::Pending | State::Applied | State::Reformatted | State::UnderWay => None,
        };
        statuses().filter_map(problem).collect()
    }

    /// What would stop a run at the files after a version and at the repeatable ones, whatever is on record: to know it before something is
    /// reverted that is to be applied again.
    #[must_use]
    pub fn problems_after(&self, version: i64) -> Vec<Error> {
        let files: Vec<&Migration> = self.ups().filter(|file| file.version > version).collect();
        let repeatables: Vec<Migration> = self.repeatables.values().cloned().collect();
        let mut problems = problems_of_files(files.iter().copied(), &repeatables);
        problems.extend(self.problems_of_steps(files.into_iter()));
        problems
    }

    /// The files that go up to a version, or to the newest one, and whether they are under way.
    pub(crate) fn to_apply(&self, statuses: &[Status], to: Option<i64>) -> Vec<(&Migration, bool)> {
        let to_do = statuses.iter().filter(|status| status.is_to_do(to) && status.state != State::Dirty);
        to_do
            .filter_map(|status| Some((self.file(status.version, false)?, status.state == State::UnderWay)))
            .collect()
    }

    /// The files that go down to a version, by the program or by the record, and whether they are under way.
    pub(crate) fn to_revert<'m>(
        &'m self,
        statuses: &[Status],
        target: i64,
        stored: &'m [Migration],
    ) -> Result<Vec<(&'m Migration, bool)>, Error> {
        let applied = statuses.iter().rev().filter(|status| status.is_to_revert(target));
        applied
            .map(|status| {
                let version = status.version;
                let down =
                    self.file(version, true).or_else(|| stored.iter().find(|it| it.version == version));
                // sqlx would skip it without an error.
                Ok((down.ok_or(Error::NoDown { version, target })?, status.state == State::UnderWay))
            })
            .collect()
    }

    /// The ways back on record of versions that go down and have no down file, if they are to be used.
    pub(crate) async fn stored_downs(
        &self,
        connection: &mut PgConnection,
        statuses: &[Status],
        target: i64,
    ) -> Result<Vec<Migration>, Error> {
        let applied = statuses.iter().filter(|status| status.is_to_revert(target));
        let missing: Vec<i64> = applied
            .map(|status| status.version)
            .filter(|version| self.file(*version, true).is_none())
            .collect();
        if missing.is_empty() || !self.uses_stored_downs {
            return Ok(Vec::new());
        }
        let Some(table) = Table::find(connection, &self.migrator.table_name).await? else {
            return Ok(Vec::new());
        };
        let stored = history::ways_back(connection, &table, &missing).await?;
        let down = |(version, description, sql): (i64, String, String)| {
            let no_tx = files::is_outside(&sql);
            let sql = AssertSqlSafe(sql).into_sql_str();
            Migration::new(version, description.into(), MigrationType::ReversibleDown, sql, no_tx)
        };
        Ok(stored.into_iter().map(down).collect())
    }

    pub(crate) fn warn_of_near_misses(&self, status: &[Status]) {
        let applied = status::applied_versions(status);
        for migration in self.ups().filter(|migration| applied.contains(&migration.version)) {
            if let Some(line) = files::near_miss(migration) {
                let version = migration.version;
                tracing::warn!(
                    version,
                    line,
                    "the migration ran in a transaction, although a line says otherwise"
                );
            }
        }
    }

    pub(crate) fn warn_of_edits(&self, statuses: &[Status]) {
        if self.edits != Edits::Warn {
            return;
        }
        for Status { version, .. } in statuses.iter().filter(|status| status.state == State::Reformatted) {
            tracing::warn!(
                version,
                "comments or formatting of a migration were changed after it was applied: sqlx refuses it until the new checksum is on \
                 record (rebless), and then programs refuse it that were built before"
            );
        }
    }
}

/// What stops files that are about to run.
pub(crate) fn problems_of_files<'m>(
    files: impl Iterator<Item = &'m Migration> + Clone,
    repeatables: &'m [Migration],
) -> Vec<Error> {
    let missed = files.clone().filter_map(|file| {
        files::near_miss(file).map(|line| Error::Directive { version: file.version, line })
    });
    let findings = files.filter_map(statements::finding);
    let findings: Vec<_> =
        findings.chain(repeatables.iter().filter_map(statements::finding_in_repeatable)).collect();
    let refused = (!findings.is_empty()).then_some(Error::Refused { findings });
    missed.chain(refused).collect()
}

pub(crate) fn newest<'s>(statuses: impl Iterator<Item = &'s Status>) -> i64 {
    let applied = statuses.filter(|status| status.state != State::Pending);
    applied.map(|status| status.version).max().unwrap_or(0)
}
