//! Applying and reverting migrations.

use std::collections::BTreeSet;

use db_core::{Config, ConnectRetry, Pooler, RetryBudget};
use sqlx::Connection;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;

use crate::blockers::Observer;
use crate::history::{Action, Author, History};
use crate::lock::Key;
use crate::look::{newest, problems_of_files};
use crate::session::{LockTimeout, Session};
use crate::status::{self, Look, State, Status};
use crate::step::{FileToRun, Steps};
use crate::table::Table;
use crate::{Error, Migrations, Plan, Planned, lock, session};

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The versions applied or reverted, in that order.
    pub changed: Vec<i64>,
    /// The names of the repeatable files that were applied, in that order.
    pub repeated: Vec<String>,
    /// The newest version applied afterwards, 0 if none is.
    pub version: i64,
}

impl Migrations {
    /// Applies all pending migrations, with the budget of [`ConnectRetry::default`]. See [`Migrations::up_within`].
    ///
    /// # Errors
    ///
    /// As [`Migrations::up_within`].
    pub async fn up(&self, config: &Config) -> Result<Report, Error> {
        self.up_within(config, ConnectRetry::default()).await
    }

    /// Applies all pending migrations. Does nothing, and takes no lock, if none is pending, unless applied ones are to be adopted by the
    /// history.
    ///
    /// Each runs in a transaction of its own, unless its first line is `-- no-transaction`. Dropping the future closes
    /// the connection: the migration under way is rolled back, those before it stay. Outside of a transaction, and of a step in batches, what is
    /// done stays, and the next run goes on.
    ///
    /// `retry` limits the wait for the server. When the connection is lost, a new one waits until the lost session has released
    /// the lock, reads the versions on record, and goes on from there: a migration and its record are one transaction. A
    /// migration that runs outside of a transaction goes on with the first of its statements that is not done.
    ///
    /// # Errors
    ///
    /// [`Error`] names the version and the reason; see the crate's documentation for what is refused.
    pub async fn up_within(&self, config: &Config, retry: ConnectRetry) -> Result<Report, Error> {
        self.up_from(None, config, retry, None).await
    }

    /// Applies the pending migrations up to a version, which is applied last.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVersion`], with nothing applied; else as [`Migrations::up_within`].
    pub async fn up_to(&self, config: &Config, version: i64) -> Result<Report, Error> {
        if self.file(version, false).is_none() {
            return Err(Error::NoSuchVersion { version });
        }
        self.up_from(None, config, ConnectRetry::default(), Some(version)).await
    }

    /// As [`Self::up_within`], but begins on an open session in the database that `config` names. The session is closed at the
    /// end, which releases the lock.
    ///
    /// # Errors
    ///
    /// As [`Migrations::up_within`].
    pub async fn up_on(
        &self,
        connection: PgConnection,
        config: &Config,
        retry: ConnectRetry,
    ) -> Result<Report, Error> {
        self.up_from(Some(connection), config, retry, None).await
    }

    async fn up_from(
        &self,
        mut first: Option<PgConnection>,
        config: &Config,
        retry: ConnectRetry,
        to: Option<i64>,
    ) -> Result<Report, Error> {
        refuse_pooler(config)?;
        let mut budget = RetryBudget::new(retry);
        // What was on record when the lock was first taken.
        let mut before = None;
        loop {
            let mut done = self.go_on(first.take(), config, budget.left(), to, &mut before).await;
            if let Err(Error::Connect(error)) = &mut done {
                budget.count(error);
            }
            match done {
                Err(error) if error.is_transient() && budget.pause(config, "migrate", &error).await => {}
                ended => return ended,
            }
        }
    }

    /// Reads the versions on record, and applies the pending ones.
    async fn go_on(
        &self,
        first: Option<PgConnection>,
        config: &Config,
        retry: ConnectRetry,
        to: Option<i64>,
        before: &mut Option<Look>,
    ) -> Result<Report, Error> {
        let mut connection = match first {
            Some(mut first) => {
                session::lift_limit(&mut first).await;
                first
            }
            None => session::open(config, retry).await?,
        };
        // One that is on record as begun may end while the lock is waited for.
        let look = self.read(&mut connection).await?;
        let statuses = &look.statuses;
        self.check(&mut connection, statuses, &[State::Dirty], self.allows_newer).await?;
        self.warn_of_near_misses(statuses);
        self.warn_of_edits(statuses);
        let is_anything = statuses.iter().any(|status| status.is_to_do(to));
        if !is_anything && self.to_repeat(&look, to).is_empty() {
            if let Some(before) = before {
                return self.report(connection, before).await;
            }
            if look.may_adopt && !look.not_in_history.is_empty() {
                self.adopt(&mut connection, config).await;
            }
            close(connection).await;
            let version = newest(statuses.iter());
            return Ok(Report { changed: Vec::new(), repeated: Vec::new(), version });
        }

        let mut steps = self.begin(&mut connection, config).await?;
        // Another process may have migrated meanwhile, or a lost session of ours may have finished.
        let look = self.checked(&mut steps, &[], self.allows_newer).await?;
        let pending = self.to_apply(&look.statuses, to);
        let repeatables = self.to_repeat(&look, to);
        self.refuse(pending.iter().map(|(file, _)| *file), &repeatables)?;
        if steps.history.is_none() && !repeatables.is_empty() {
            return Err(Error::NoHistory { table: steps.table.history.name });
        }
        let before = before.get_or_insert(look);
        let pending = pending
            .into_iter()
            .map(|(migration, is_under_way)| (FileToRun::new(migration, Action::Up), is_under_way));
        let repeated = repeatables.iter().map(|migration| (FileToRun::new(migration, Action::Repeat), false));
        let files: Vec<_> = pending.chain(repeated).collect();
        steps.run_files(&files).await?;
        steps.close().await;
        self.report(connection, before).await
    }

    /// Prepares the session, takes the lock, and makes the table if there is none.
    pub(crate) async fn begin<'c>(
        &'c self,
        connection: &'c mut PgConnection,
        config: &'c Config,
    ) -> Result<Steps<'c>, Error> {
        let lock_timeout = LockTimeout(self.lock_timeout);
        let session = Session::prepare(connection, Key::of(config.database()), lock_timeout).await?;
        lock::acquire(connection, config.database(), self.lock_deadline).await?;
        let Migrator { table_name, create_schemas, .. } = &self.migrator;
        let table = match Table::find(connection, table_name).await? {
            Some(table) => table,
            None => Table::make(connection, table_name, create_schemas).await?,
        };
        let history = History::open(connection, &table, self.author(config)).await?;
        let observer = Observer::new(config, session.pid, self.shows_statements, self.lock_timeout);
        Ok(Steps {
            connection,
            session,
            table,
            role: self.role.as_deref(),
            is_prepared: false,
            lock_timeout,
            patience: self.patience,
            observer: Some(observer),
            history,
            files: self,
            config,
        })
    }

    fn author(&self, config: &Config) -> Author {
        let executable = || {
            let path = std::env::current_exe().ok()?;
            Some(path.file_stem()?.to_string_lossy().into_owned())
        };
        let (program, version) = match &self.program {
            Some((program, version)) => (Some(program.clone()), Some(version.clone())),
            None => (config.application_name().map(str::to_owned).or_else(executable), None),
        };
        Author { program, version, stores_sql: self.stores_sql }
    }

    /// Reverts all migrations newer than `target`, the newest first; 0 reverts everything.
    ///
    /// # Errors
    ///
    /// [`Error::NoDown`] and [`Error::NoSuchVersion`], with nothing reverted; [`Error::WritableHistory`] with
    /// [`Migrations::with_stored_downs`]; else as [`Migrations::up`].
    pub async fn down_to(&self, config: &Config, target: i64) -> Result<Report, Error> {
        self.down(config, target, None).await
    }

    /// Reverts what [`Migrations::plan_down`] has planned, and nothing else: for a program that shows a plan and asks.
    ///
    /// # Errors
    ///
    /// [`Error::NotAsPlanned`], with nothing reverted; else as [`Migrations::down_to`].
    pub async fn down_by(&self, config: &Config, plan: &Plan) -> Result<Report, Error> {
        self.down(config, plan.down_to.ok_or(Error::NotAsPlanned)?, Some(&plan.steps)).await
    }

    async fn down(&self, config: &Config, target: i64, planned: Option<&[Planned]>) -> Result<Report, Error> {
        let is_known = target == 0 || self.file(target, false).is_some();
        if !is_known && !self.uses_stored_downs {
            return Err(Error::NoSuchVersion { version: target });
        }
        refuse_pooler(config)?;
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let mut steps = self.begin(&mut connection, config).await?;
        let unknown: &[State] = if self.uses_stored_downs { &[State::Unknown] } else { &[] };
        let look = self.checked(&mut steps, unknown, false).await?;
        let before = &look.statuses;
        if !is_known && before.iter().all(|status| status.version != target) {
            return Err(Error::NoSuchVersion { version: target });
        }
        self.warn_of_edits(before);
        let stored = self.stored_downs(steps.connection, before, target).await?;
        let downs = self.to_revert(before, target, &stored)?;
        let is_planned = |planned: &[Planned]| {
            let planned = planned.iter().map(|step| (step.version, &*step.sql));
            planned.eq(downs.iter().map(|(down, _)| (down.version, down.sql.as_str())))
        };
        if !planned.is_none_or(is_planned) {
            return Err(Error::NotAsPlanned);
        }
        self.refuse(downs.iter().map(|(down, _)| *down), &[])?;
        let downs = downs.into_iter();
        let files: Vec<_> = downs
            .map(|(migration, is_under_way)| (FileToRun::new(migration, Action::Down), is_under_way))
            .collect();
        steps.run_files(&files).await?;
        steps.close().await;
        self.report(connection, &look).await
    }

    /// Puts on record in the history what is applied and not there, if nobody migrates now. The next run does it otherwise.
    async fn adopt(&self, connection: &mut PgConnection, config: &Config) {
        let adopted = async {
            if !lock::try_once(connection, Key::of(config.database())).await? {
                return Ok(());
            }
            let mut steps = self.begin(connection, config).await?;
            let look = self.read(steps.connection).await?;
            steps.catch_up(&look).await?;
            steps.close().await;
            Ok::<_, Error>(())
        };
        match adopted.await {
            // What only reads can adopt nothing.
            Ok(()) | Err(Error::Standby) => {}
            Err(error) => tracing::warn!(%error, "applied migrations are not in the history yet"),
        }
    }

    fn refuse<'m>(
        &self,
        files: impl Iterator<Item = &'m Migration> + Clone,
        repeatables: &'m [Migration],
    ) -> Result<(), Error> {
        let steps = self.problems_of_steps(files.clone());
        problems_of_files(files, repeatables).into_iter().chain(steps).next().map_or(Ok(()), Err)
    }

    async fn report(&self, mut connection: PgConnection, look_before: &Look) -> Result<Report, Error> {
        let look = self.read(&mut connection).await?;
        close(connection).await;

        let (before, after) = (&look_before.statuses, &look.statuses);
        let now = status::applied_versions(after);
        let applied_before = status::applied_versions(before);
        // One that was under way was so down, unless it is applied now.
        let on_record = |statuses: &[Status]| -> BTreeSet<i64> {
            let those = statuses.iter().filter(|status| status.state != State::Pending);
            those.map(|status| status.version).collect()
        };
        let (before, still) = (on_record(before), on_record(after));
        let down = before.iter().rev().copied().filter(|version| !still.contains(version));
        let changed: Vec<i64> = now.difference(&applied_before).copied().chain(down).collect();
        for version in &changed {
            tracing::info!(version, "migrated");
        }
        let names = self.repeatables.keys();
        let repeated: Vec<String> = names
            .filter(|name| {
                let now = look.repeated.get(*name);
                now.is_some() && now != look_before.repeated.get(*name)
            })
            .cloned()
            .collect();
        for name in &repeated {
            tracing::info!(name, "a repeatable file is applied");
        }
        Ok(Report { changed, repeated, version: newest(after.iter()) })
    }
}

pub(crate) fn refuse_pooler(config: &Config) -> Result<(), Error> {
    match config.pooler() {
        Pooler::None => Ok(()),
        _ => Err(Error::Pooled { to: config.to_string() }),
    }
}

/// Releases the lock. If a graceful close fails, the connection is gone, and the lock with it.
pub(crate) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the migration connection was lost before it was closed");
    }
}
