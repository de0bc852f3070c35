//! What a run would do.

use std::fmt;

use db_core::sql::split;
use db_core::{Config, ConnectRetry};
use serde::Serialize;
use sqlx::migrate::Migration;

use crate::data_step::step_name;
use crate::look::{newest, problems_of_files};
use crate::run::close;
use crate::status::{Look, State, Status};
use crate::{Action, Error, Migrations, Repeatable, session};

/// What a run would do, and what would stop it. See [`Migrations::plan_up`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What it would run, in that order.
    pub steps: Vec<Planned>,
    /// What would stop it before anything is done: all of it, and not only the first.
    pub problems: Vec<Error>,
    /// The states before it, in order of versions.
    pub status: Vec<Status>,
    /// The repeatable files and their states before it, in order of names.
    pub repeatables: Vec<Repeatable>,
    /// The newest version on record, 0 if none is.
    pub current_version: i64,
    /// The version that it goes down to.
    pub(crate) down_to: Option<i64>,
}

/// A file that a run would run. `Debug` does not show its SQL, which may hold secrets.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Planned {
    /// Its version. Of a repeatable file, the newest one.
    pub version: i64,
    /// The name in its file's name, with spaces for underscores. Of a repeatable file, its name without `.sql`.
    pub description: String,
    /// [`Action::Up`], [`Action::Down`] or [`Action::Repeat`].
    pub action: Action,
    /// Whether it runs in a transaction, with its record.
    pub in_transaction: bool,
    /// Whether it goes on with one that is under way.
    pub goes_on: bool,
    /// The step of the program that runs in its place.
    pub step: Option<String>,
    /// Whether its SQL is that on record, since the program has no such file.
    pub from_record: bool,
    /// The number of its statements; none if they cannot be told apart.
    pub statements: Option<usize>,
    /// Its SQL.
    #[serde(skip)]
    pub sql: String,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, action, .. } = self;
        f.debug_struct("Planned").field("version", version).field("action", action).finish_non_exhaustive()
    }
}

impl Migrations {
    /// What [`Migrations::up`] would do now, or [`Migrations::up_to`] with this version. Takes no lock and changes nothing, so a role that
    /// may only read can ask.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVersion`], [`Error::Connect`] or [`Error::Database`].
    pub async fn plan_up(&self, config: &Config, to: Option<i64>) -> Result<Plan, Error> {
        if let Some(version) = to.filter(|to| self.file(*to, false).is_none()) {
            return Err(Error::NoSuchVersion { version });
        }
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let look = self.read(&mut connection).await?;
        let status = &look.statuses;
        let mut problems = Vec::new();
        for problem in self.problems(status, &[], self.allows_newer) {
            problems.push(self.with_difference(&mut connection, problem).await?);
        }
        close(connection).await;
        let files = self.to_apply(status, to);
        let repeatables = self.to_repeat(&look, to);
        problems.extend(problems_of_files(files.iter().map(|(file, _)| *file), &repeatables));
        problems.extend(self.problems_of_steps(files.iter().map(|(file, _)| *file)));
        let steps = files.into_iter().map(|(file, goes_on)| self.planned(file, Action::Up, goes_on));
        let repeated = repeatables.iter().map(|file| self.planned(file, Action::Repeat, false));
        let steps = steps.chain(repeated).collect();
        Ok(self.plan(steps, problems, look, None))
    }

    /// What [`Migrations::down_to`] would do now. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Migrations::plan_up`].
    pub async fn plan_down(&self, config: &Config, target: i64) -> Result<Plan, Error> {
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let look = self.read(&mut connection).await?;
        let status = &look.statuses;
        let is_known = target == 0 || self.file(target, false).is_some();
        let is_on_record = status.iter().any(|status| status.version == target);
        if !(is_known || self.uses_stored_downs && is_on_record) {
            return Err(Error::NoSuchVersion { version: target });
        }
        let allowed: &[State] = if self.uses_stored_downs { &[State::Unknown] } else { &[] };
        let mut problems = Vec::new();
        for problem in self.problems(status, allowed, false) {
            problems.push(self.with_difference(&mut connection, problem).await?);
        }
        let stored = match self.stored_downs(&mut connection, status, target).await {
            Err(error @ Error::WritableHistory { .. }) => {
                problems.push(error);
                Vec::new()
            }
            stored => stored?,
        };
        close(connection).await;
        let steps = match self.to_revert(status, target, &stored) {
            Ok(files) => {
                problems.extend(problems_of_files(files.iter().map(|(file, _)| *file), &[]));
                problems.extend(self.problems_of_steps(files.iter().map(|(file, _)| *file)));
                files.into_iter().map(|(file, goes_on)| self.planned(file, Action::Down, goes_on)).collect()
            }
            Err(error) => {
                problems.push(error);
                Vec::new()
            }
        };
        Ok(self.plan(steps, problems, look, Some(target)))
    }

    fn plan(&self, steps: Vec<Planned>, problems: Vec<Error>, look: Look, down_to: Option<i64>) -> Plan {
        let current_version = newest(look.statuses.iter());
        let repeatables = self.repeatables(&look);
        Plan { steps, problems, status: look.statuses, repeatables, current_version, down_to }
    }

    fn planned(&self, file: &Migration, action: Action, goes_on: bool) -> Planned {
        let sql = file.sql.as_str();
        Planned {
            version: file.version,
            description: file.description.to_string(),
            action,
            in_transaction: !file.no_tx,
            goes_on,
            step: step_name(file).map(str::to_owned),
            from_record: action == Action::Down && self.file(file.version, true).is_none(),
            statements: split(sql).ok().map(|statements| statements.len()),
            sql: sql.to_owned(),
        }
    }
}
