//! A set of migrations, and running it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use db_core::{Config, ConnectRetry, Pooler, RetryBudget};
use sqlx::Connection;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;

use crate::blockers::Observer;
use crate::lock::Key;
use crate::session::{LockTimeout, Session};
use crate::status::{self, State, Status};
use crate::step::{Steps, is_missing_table};
use crate::table::Table;
use crate::{Error, files, lock, session, statements};

/// Default of [`Migrations::with_lock_deadline`].
const LOCK_DEADLINE: Duration = Duration::from_mins(1);

/// Default of [`Migrations::with_lock_timeout`].
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of [`Migrations::with_patience`].
const PATIENCE: Duration = Duration::from_mins(10);

/// How often the records are read when tables come and go meanwhile.
const LOOKS: u32 = 3;

/// The migrations that a program knows.
#[derive(Debug)]
pub struct Migrations {
    migrator: Migrator,
    role: Option<String>,
    lock_deadline: Duration,
    lock_timeout: Duration,
    patience: Duration,
    shows_statements: bool,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The versions applied or reverted, in that order.
    pub changed: Vec<i64>,
    /// The newest version applied afterwards, 0 if none is.
    pub version: i64,
}

impl Migrations {
    /// The migrations that `sqlx::migrate!` built into the program, or others in memory, by [`Migrator::with_migrations`].
    #[must_use]
    pub fn new(migrator: &Migrator) -> Self {
        let mut ours = Migrator::with_migrations(migrator.iter().cloned().collect());
        // With the names that `sqlx.toml` gave to `sqlx::migrate!`.
        ours.dangerous_set_table_name(migrator.table_name.clone());
        ours.create_schemas.clone_from(&migrator.create_schemas);
        Self {
            migrator: ours,
            role: None,
            lock_deadline: LOCK_DEADLINE,
            lock_timeout: LOCK_TIMEOUT,
            patience: PATIENCE,
            shows_statements: false,
        }
    }

    /// Reads a folder of migrations. A file `sqlx.toml` beside it, such as sqlx reads, sets the table, the schemas to create, and the
    /// characters that do not count in checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the folder or `sqlx.toml` cannot be read, with everything that is wrong with the names of files.
    pub async fn from_dir(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self::new(&files::read(dir.as_ref()).await?))
    }

    /// Records the migrations in another table than `_sqlx_migrations`, so that one database can have several lines of migrations.
    ///
    /// As in sqlx, the name may have a schema and quotes, and stands in SQL as it is. All lines have one lock.
    #[must_use]
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.migrator.dangerous_set_table_name(name.into());
        self
    }

    /// Runs each migration as this role, which then owns what the migration makes. The role that connects must be a member of it, and
    /// writes the record.
    #[must_use]
    pub fn with_role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// How long to try to take the migration lock (default 60 s).
    #[must_use]
    pub fn with_lock_deadline(mut self, deadline: Duration) -> Self {
        self.lock_deadline = deadline;
        self
    }

    /// How long a statement of a migration waits for a lock on a table or a row (default 5 s, at least 1 ms). Others who want the table
    /// queue behind it for as long. Then the migration is rolled back, and tried again as a whole.
    ///
    /// In a file outside of a transaction, a statement is tried again by itself. One that PostgreSQL refuses in a transaction waits without a
    /// limit: `CREATE INDEX CONCURRENTLY` waits for older transactions by locks, and would leave an invalid index.
    #[must_use]
    pub fn with_lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// How long a migration is tried that does not get its locks, or ends in a deadlock with others (default 10 min).
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Shows the first words of the statements that keep a migration waiting, in logs and errors (default off: they may hold secrets).
    #[must_use]
    pub fn with_blocking_statements(mut self, show: bool) -> Self {
        self.shows_statements = show;
        self
    }

    /// Applies all pending migrations, with the budget of [`ConnectRetry::default`]. See [`Migrations::up_within`].
    ///
    /// # Errors
    ///
    /// As [`Migrations::up_within`].
    pub async fn up(&self, config: &Config) -> Result<Report, Error> {
        self.up_within(config, ConnectRetry::default()).await
    }

    /// Applies all pending migrations. Does nothing, and takes no lock, if none is pending.
    ///
    /// Each runs in a transaction of its own, unless its first line is `-- no-transaction`. Dropping the future closes
    /// the connection: the migration under way is rolled back, those before it stay.
    ///
    /// `retry` limits the wait for the server. When the connection is lost, a new one waits until the lost session has released
    /// the lock, reads the versions on record, and goes on from there: a migration and its record are one transaction. A
    /// migration that runs outside of a transaction goes on with the first of its statements that is not done.
    ///
    /// # Errors
    ///
    /// [`Error`] names the version and the reason; see the crate's documentation for what is refused.
    pub async fn up_within(&self, config: &Config, retry: ConnectRetry) -> Result<Report, Error> {
        self.up_from(None, config, retry).await
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
        self.up_from(Some(connection), config, retry).await
    }

    async fn up_from(
        &self,
        mut first: Option<PgConnection>,
        config: &Config,
        retry: ConnectRetry,
    ) -> Result<Report, Error> {
        refuse_pooler(config)?;
        let mut budget = RetryBudget::new(retry);
        // The statuses when the lock was first taken.
        let mut before = None;
        loop {
            let mut done = self.go_on(first.take(), config, budget.left(), &mut before).await;
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
        before: &mut Option<Vec<Status>>,
    ) -> Result<Report, Error> {
        let mut connection = match first {
            Some(mut first) => {
                session::lift_limit(&mut first).await;
                first
            }
            None => session::open(config, retry).await?,
        };
        // One that is on record as begun may end while the lock is waited for.
        let status = self.read(&mut connection).await?;
        refuse(status.iter().filter(|status| status.state != State::Dirty))?;
        self.warn_of_near_misses(&status);
        if status.iter().all(|status| status.state == State::Applied) {
            if let Some(before) = before {
                return self.report(connection, before).await;
            }
            close(connection).await;
            return Ok(Report { changed: Vec::new(), version: newest(status.iter()) });
        }

        let mut steps = self.begin(&mut connection, config).await?;
        // Another process may have migrated meanwhile, or a lost session of ours may have finished.
        let status = self.checked_status(steps.connection).await?;
        let by_version: BTreeMap<i64, State> =
            status.iter().map(|status| (status.version, status.state)).collect();
        let state_of = |migration: &Migration| by_version.get(&migration.version);
        let pending: Vec<&Migration> =
            self.ups().filter(|migration| state_of(migration) != Some(&State::Applied)).collect();
        refuse_near_misses(pending.iter().copied())?;
        refuse_findings(pending.iter().copied())?;
        let before = before.get_or_insert(status);
        for (nth, migration) in pending.iter().enumerate() {
            let is_under_way = state_of(migration) == Some(&State::UnderWay);
            steps.apply(migration, is_under_way, pending.get(nth + 1).copied()).await?;
        }
        steps.close().await;
        self.report(connection, before).await
    }

    /// Prepares the session, takes the lock, and makes the table if there is none.
    pub(crate) async fn begin<'c>(
        &'c self,
        connection: &'c mut PgConnection,
        config: &Config,
    ) -> Result<Steps<'c>, Error> {
        let lock_timeout = LockTimeout(self.lock_timeout);
        let session = Session::prepare(connection, Key::of(config.database()), lock_timeout).await?;
        lock::acquire(connection, config.database(), self.lock_deadline).await?;
        let Migrator { table_name, create_schemas, .. } = &self.migrator;
        let table = match Table::find(connection, table_name).await? {
            Some(table) => table,
            None => Table::make(connection, table_name, create_schemas).await?,
        };
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
        })
    }

    fn warn_of_near_misses(&self, status: &[Status]) {
        let applied = status::versions(status, State::Applied);
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

    /// Reverts all migrations newer than `target`, the newest first; 0 reverts everything.
    ///
    /// # Errors
    ///
    /// [`Error::NoDown`] and [`Error::NoSuchVersion`], with nothing reverted; else as [`Migrations::up`].
    pub async fn down_to(&self, config: &Config, target: i64) -> Result<Report, Error> {
        if target != 0 && self.ups().all(|migration| migration.version != target) {
            return Err(Error::NoSuchVersion { version: target });
        }
        refuse_pooler(config)?;
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let mut steps = self.begin(&mut connection, config).await?;
        let before = self.checked_status(steps.connection).await?;
        let applied =
            before.iter().rev().filter(|status| status.state != State::Pending && status.version > target);
        let downs: Vec<(&Migration, bool)> = applied
            .map(|status| {
                // sqlx would skip it without an error.
                let down = self
                    .file(status.version, true)
                    .ok_or(Error::NoDown { version: status.version, target })?;
                Ok((down, status.state == State::UnderWay))
            })
            .collect::<Result<_, Error>>()?;
        let files = || downs.iter().map(|(down, _)| *down);
        refuse_near_misses(files())?;
        refuse_findings(files())?;
        for (nth, (down, is_under_way)) in downs.iter().enumerate() {
            steps.revert(down, *is_under_way, files().nth(nth + 1)).await?;
        }
        steps.close().await;
        self.report(connection, &before).await
    }

    /// Compares a database with these migrations, in order of versions. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] or [`Error::Database`].
    pub async fn status(&self, config: &Config) -> Result<Vec<Status>, Error> {
        let mut connection = session::open(config, ConnectRetry::default()).await?;
        let status = self.read(&mut connection).await?;
        close(connection).await;
        Ok(status)
    }

    /// The file of a version, up or down.
    pub(crate) fn file(&self, version: i64, down: bool) -> Option<&Migration> {
        self.migrator.iter().find(|migration| {
            migration.version == version && migration.migration_type.is_down_migration() == down
        })
    }

    fn ups(&self) -> impl Iterator<Item = &Migration> {
        self.migrator.iter().filter(|migration| !migration.migration_type.is_down_migration())
    }

    pub(crate) async fn read(&self, connection: &mut PgConnection) -> Result<Vec<Status>, Error> {
        for _ in 1..LOOKS {
            let table = Table::find(connection, &self.migrator.table_name).await?;
            let has_progress = table.as_ref().is_some_and(|table| table.has_progress);
            match status::read(connection, table.as_ref(), self.ups()).await {
                // The table of progress was dropped meanwhile, with the end of a run.
                Err(Error::Database { cause, .. }) if is_missing_table(&cause) => {}
                // Or it was made meanwhile.
                Ok(status) if !has_progress && status.iter().any(|it| it.state == State::Dirty) => {}
                read => return read,
            }
        }
        let table = Table::find(connection, &self.migrator.table_name).await?;
        status::read(connection, table.as_ref(), self.ups()).await
    }

    /// Reads the statuses, and refuses what the front page lists.
    async fn checked_status(&self, connection: &mut PgConnection) -> Result<Vec<Status>, Error> {
        let status = self.read(connection).await?;
        refuse(status.iter())?;
        Ok(status)
    }

    async fn report(&self, mut connection: PgConnection, before: &[Status]) -> Result<Report, Error> {
        let after = self.read(&mut connection).await?;
        close(connection).await;

        let now = status::versions(&after, State::Applied);
        let applied_before = status::versions(before, State::Applied);
        // One that was under way was so down, unless it is applied now.
        let before = before.iter().rev().filter(|status| status.state != State::Pending);
        let down = before.map(|status| status.version).filter(|version| !now.contains(version));
        let changed: Vec<i64> = now.difference(&applied_before).copied().chain(down).collect();
        for version in &changed {
            tracing::info!(version, "migrated");
        }
        Ok(Report { changed, version: newest(after.iter()) })
    }
}

fn refuse<'s>(status: impl Iterator<Item = &'s Status> + Clone) -> Result<(), Error> {
    let newest = newest(status.clone());
    for Status { version, state, .. } in status {
        let version = *version;
        match state {
            State::Unknown => return Err(Error::Unknown { version }),
            State::Changed => return Err(Error::Changed { version }),
            State::Dirty => return Err(Error::Dirty { version }),
            State::Pending if version < newest => return Err(Error::OutOfOrder { version, newest }),
            State::Pending | State::Applied | State::UnderWay => {}
        }
    }
    Ok(())
}

fn refuse_near_misses<'m>(mut migrations: impl Iterator<Item = &'m Migration>) -> Result<(), Error> {
    let missed = migrations.find_map(|migration| Some((migration.version, files::near_miss(migration)?)));
    missed.map_or(Ok(()), |(version, line)| Err(Error::Directive { version, line }))
}

fn refuse_findings<'m>(migrations: impl Iterator<Item = &'m Migration>) -> Result<(), Error> {
    let findings: Vec<_> = migrations.filter_map(statements::finding).collect();
    if findings.is_empty() { Ok(()) } else { Err(Error::Refused { findings }) }
}

pub(crate) fn refuse_pooler(config: &Config) -> Result<(), Error> {
    match config.pooler() {
        Pooler::None => Ok(()),
        _ => Err(Error::Pooled { to: config.to_string() }),
    }
}

fn newest<'s>(statuses: impl Iterator<Item = &'s Status>) -> i64 {
    let applied = statuses.filter(|status| status.state != State::Pending);
    applied.map(|status| status.version).max().unwrap_or(0)
}

/// Releases the lock. If a graceful close fails, the connection is gone, and the lock with it.
pub(crate) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the migration connection was lost before it was closed");
    }
}
