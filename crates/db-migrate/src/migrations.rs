//! A set of migrations, and running it.

use std::path::Path;
use std::time::Duration;

use db_core::{Config, ConnectRetry, Pooler, RetryBudget, connect};
use sqlx::Connection;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;

use crate::status::{self, State, Status};
use crate::{Error, lock, session};

/// Default of [`Migrations::with_lock_deadline`].
const LOCK_DEADLINE: Duration = Duration::from_mins(1);

/// The migrations that a program knows.
#[derive(Debug)]
pub struct Migrations {
    migrator: Migrator,
    lock_deadline: Duration,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The versions applied or reverted, in that order.
    pub changed: Vec<i64>,
    /// The newest version applied afterwards, 0 if none is.
    pub version: i64,
}

/// What a run knows when it replaces a lost connection.
#[derive(Debug, Default)]
struct Run {
    /// The statuses when the lock was first taken.
    before: Option<Vec<Status>>,
    /// A migration outside of a transaction that ran when the connection was lost, and the error. The next connection checks
    /// whether it is on record.
    doubtful: Option<(i64, String)>,
}

impl Run {
    fn may_retry(&self, error: &Error) -> bool {
        error.is_transient() || (self.doubtful.is_some() && matches!(error, Error::Interrupted { .. }))
    }
}

impl Migrations {
    /// The migrations that `sqlx::migrate!` built into the program.
    #[must_use]
    pub fn new(migrator: &Migrator) -> Self {
        let mut migrator = Migrator::with_migrations(migrator.iter().cloned().collect());
        // sqlx would wait for its lock; ours is tried.
        migrator.set_locking(false);
        Self { migrator, lock_deadline: LOCK_DEADLINE }
    }

    /// Reads a folder of migrations.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the folder cannot be read as migrations.
    pub async fn from_dir(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let migrator = Migrator::new(dir)
            .await
            .map_err(|error| Error::Source { dir: dir.display().to_string(), reason: error.to_string() })?;
        Ok(Self::new(&migrator))
    }

    /// How long to try to take the lock (default 60 s).
    #[must_use]
    pub fn with_lock_deadline(mut self, deadline: Duration) -> Self {
        self.lock_deadline = deadline;
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
    /// migration that runs outside of a transaction is repeated only if it never began.
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
        let mut run = Run::default();
        loop {
            let mut done = self.go_on(first.take(), config, budget.left(), &mut run).await;
            if let Err(Error::Connect(error)) = &mut done {
                budget.count(error);
            }
            match done {
                Err(error) if run.may_retry(&error) && budget.pause(config, "migrate", &error).await => {}
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
        run: &mut Run,
    ) -> Result<Report, Error> {
        let mut connection = match first {
            Some(first) => first,
            None => connect::connect(config, retry).await?,
        };
        let status = self.checked_status(&mut connection).await?;
        if status.iter().all(|status| status.state == State::Applied) {
            if let Some(before) = &run.before {
                return self.report(connection, before).await;
            }
            close(connection).await;
            return Ok(Report { changed: Vec::new(), version: newest(&status) });
        }

        session::detect_lost_client(&mut connection).await;
        lock::acquire(&mut connection, config.database(), self.lock_deadline).await?;
        // Another process may have migrated meanwhile, or a lost session of ours may have finished.
        let status = self.checked_status(&mut connection).await?;
        if let Some((version, reason)) = run.doubtful.take()
            && status.iter().any(|status| status.version == version && status.state == State::Pending)
        {
            return Err(Error::Interrupted { version, reason });
        }
        let pending: Vec<i64> = status
            .iter()
            .filter(|status| status.state == State::Pending)
            .map(|status| status.version)
            .collect();
        let before = run.before.get_or_insert(status);
        for version in pending {
            // One migration at a time, to know which one a lost connection has interrupted.
            let applied = self.migrator.run_direct(Some(version), &mut connection, false).await;
            if let Err(error) = applied.map_err(Error::from_sqlx) {
                if error.is_transient() && self.is_without_transaction(version) {
                    let reason = error.to_string();
                    run.doubtful = Some((version, reason.clone()));
                    return Err(Error::Interrupted { version, reason });
                }
                return Err(error);
            }
        }
        self.report(connection, before).await
    }

    fn is_without_transaction(&self, version: i64) -> bool {
        self.ups().any(|migration| migration.version == version && migration.no_tx)
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
        let mut connection = connect::connect(config, ConnectRetry::default()).await?;
        session::detect_lost_client(&mut connection).await;
        lock::acquire(&mut connection, config.database(), self.lock_deadline).await?;
        let before = self.checked_status(&mut connection).await?;
        let applied =
            before.iter().filter(|status| status.state == State::Applied && status.version > target);
        for Status { version, .. } in applied {
            // sqlx would skip it without an error.
            let has_down = self.migrator.iter().any(|migration| {
                migration.version == *version && migration.migration_type.is_down_migration()
            });
            if !has_down {
                return Err(Error::NoDown { version: *version, target });
            }
        }
        self.migrator.undo(&mut connection, target).await.map_err(Error::from_sqlx)?;
        self.report(connection, &before).await
    }

    /// Compares a database with these migrations, in order of versions. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] or [`Error::Database`].
    pub async fn status(&self, config: &Config) -> Result<Vec<Status>, Error> {
        let mut connection = connect::connect(config, ConnectRetry::default()).await?;
        let status = status::read(&mut connection, self.ups()).await?;
        close(connection).await;
        Ok(status)
    }

    fn ups(&self) -> impl Iterator<Item = &Migration> {
        self.migrator.iter().filter(|migration| !migration.migration_type.is_down_migration())
    }

    /// Reads the statuses, and refuses what the front page lists.
    async fn checked_status(&self, connection: &mut PgConnection) -> Result<Vec<Status>, Error> {
        let status = status::read(connection, self.ups()).await?;
        let newest = newest(&status);
        for Status { version, state, .. } in &status {
            let version = *version;
            match state {
                State::Unknown => return Err(Error::Unknown { version }),
                State::Changed => return Err(Error::Changed { version }),
                State::Pending if version < newest => return Err(Error::OutOfOrder { version, newest }),
                State::Pending | State::Applied => {}
            }
        }
        Ok(status)
    }

    async fn report(&self, mut connection: PgConnection, before: &[Status]) -> Result<Report, Error> {
        let after = status::read(&mut connection, self.ups()).await?;
        close(connection).await;

        let applied = |statuses: &[Status], version| {
            statuses.iter().any(|status| status.version == version && status.state == State::Applied)
        };
        let versions = || after.iter().map(|status| status.version);
        let up = versions().filter(|version| applied(&after, *version) && !applied(before, *version));
        let down = versions().rev().filter(|version| !applied(&after, *version) && applied(before, *version));
        let changed: Vec<i64> = up.chain(down).collect();
        for version in &changed {
            tracing::info!(version, "migrated");
        }
        Ok(Report { changed, version: newest(&after) })
    }
}

fn refuse_pooler(config: &Config) -> Result<(), Error> {
    match config.pooler() {
        Pooler::None => Ok(()),
        _ => Err(Error::Pooled { to: config.to_string() }),
    }
}

fn newest(statuses: &[Status]) -> i64 {
    let applied = statuses.iter().filter(|status| status.state != State::Pending);
    applied.map(|status| status.version).max().unwrap_or(0)
}

/// Releases the lock. If a graceful close fails, the connection is gone, and the lock with it.
async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the migration connection was lost before it was closed");
    }
}
