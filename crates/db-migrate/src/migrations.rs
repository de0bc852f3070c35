//! A set of migrations, and running them.

use std::path::Path;
use std::time::Duration;

use db_core::{Config, ConnectRetry, Pooler, RetryBudget, connect};
use sqlx::Connection;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;

use crate::status::{self, State, Status};
use crate::{Error, lock, session};

/// How long the lock is tried for.
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
    /// The versions applied or reverted, in the order in which it was done.
    pub changed: Vec<i64>,
    /// The newest version applied afterwards, 0 for none.
    pub version: i64,
}

/// What is known of a run, over the losses of its connections.
#[derive(Debug, Default)]
struct Run {
    /// How the database stood when the lock was first had.
    before: Option<Vec<Status>>,
    /// A migration outside of a transaction that was under way when the connection was lost, and what was met. Taken by who
    /// looks whether it is recorded.
    doubtful: Option<(i64, String)>,
}

impl Run {
    fn may_look_again(&self, error: &Error) -> bool {
        error.is_transient() || (self.doubtful.is_some() && matches!(error, Error::Interrupted { .. }))
    }
}

impl Migrations {
    /// The migrations that `sqlx::migrate!` built into the program.
    #[must_use]
    pub fn new(migrator: &Migrator) -> Self {
        let mut migrator = Migrator::with_migrations(migrator.iter().cloned().collect());
        // sqlx would wait on its lock; ours is tried.
        migrator.set_locking(false);
        Self { migrator, lock_deadline: LOCK_DEADLINE }
    }

    /// Reads a folder of migrations.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] when it is not one.
    pub async fn from_dir(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let migrator = Migrator::new(dir)
            .await
            .map_err(|error| Error::Source { dir: dir.display().to_string(), said: error.to_string() })?;
        Ok(Self::new(&migrator))
    }

    /// How long the lock is tried for [60 s].
    #[must_use]
    pub fn with_lock_deadline(mut self, deadline: Duration) -> Self {
        self.lock_deadline = deadline;
        self
    }

    /// Applies all that are pending, with the budget of [`ConnectRetry::default`]. See [`Migrations::up_within`].
    ///
    /// # Errors
    ///
    /// As [`Migrations::up_within`].
    pub async fn up(&self, config: &Config) -> Result<Report, Error> {
        self.up_within(config, ConnectRetry::default()).await
    }

    /// Applies all that are pending. Does nothing, and takes no lock, when none is.
    ///
    /// Each runs in a transaction of its own, unless its first line is `-- no-transaction`. Dropping the future closes
    /// the connection: the migration under way is rolled back, those before it stay.
    ///
    /// The server is waited for as `retry` says. When the connection is lost on the way, another one looks at what is recorded,
    /// once the lock of the lost session is gone and what it had under way with it, and goes on from there: a migration and
    /// its record are one transaction. One that runs outside of a transaction is not repeated unless it never began.
    ///
    /// # Errors
    ///
    /// [`Error`] names the version and the reason; see the crate's documentation for what is refused.
    pub async fn up_within(&self, config: &Config, retry: ConnectRetry) -> Result<Report, Error> {
        self.up_from(None, config, retry).await
    }

    /// The same on a session that is open already, in the database that `config` names, or on another one when that is lost. It
    /// is closed afterwards, and the lock ends with it.
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
                Err(error) if run.may_look_again(&error) && budget.pause(config, "migrate", &error).await => {
                }
                ended => return ended,
            }
        }
    }

    /// Looks where the database stands, and applies what is pending.
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

        session::have_looked_after(&mut connection).await;
        lock::acquire(&mut connection, config.database(), self.lock_deadline).await?;
        // Somebody may have been quicker, or a session of ours that was lost has come to its end.
        let status = self.checked_status(&mut connection).await?;
        if let Some((version, said)) = run.doubtful.take()
            && status.iter().any(|status| status.version == version && status.state == State::Pending)
        {
            return Err(Error::Interrupted { version, said });
        }
        let pending: Vec<i64> = status
            .iter()
            .filter(|status| status.state == State::Pending)
            .map(|status| status.version)
            .collect();
        let before = run.before.get_or_insert(status);
        for version in pending {
            // One by one, to know which it is that a loss hits.
            let applied = self.migrator.run_direct(Some(version), &mut connection, false).await;
            if let Err(error) = applied.map_err(Error::from_sqlx) {
                if error.is_transient() && self.is_without_transaction(version) {
                    let said = error.to_string();
                    run.doubtful = Some((version, said.clone()));
                    return Err(Error::Interrupted { version, said });
                }
                return Err(error);
            }
        }
        self.report(connection, before).await
    }

    fn is_without_transaction(&self, version: i64) -> bool {
        self.ups().any(|migration| migration.version == version && migration.no_tx)
    }

    /// Reverts all that are newer than `target`, the newest first; 0 reverts everything.
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
        session::have_looked_after(&mut connection).await;
        lock::acquire(&mut connection, config.database(), self.lock_deadline).await?;
        let before = self.checked_status(&mut connection).await?;
        let applied =
            before.iter().filter(|status| status.state == State::Applied && status.version > target);
        for Status { version, .. } in applied {
            // sqlx would skip it, and say that all went well.
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
        let status = status::read(&mut connection, self).await?;
        close(connection).await;
        Ok(status)
    }

    pub(crate) fn ups(&self) -> impl Iterator<Item = &Migration> {
        self.migrator.iter().filter(|migration| !migration.migration_type.is_down_migration())
    }

    /// The status, unless something in it forbids to go on.
    async fn checked_status(&self, connection: &mut PgConnection) -> Result<Vec<Status>, Error> {
        let status = status::read(connection, self).await?;
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
        let after = status::read(&mut connection, self).await?;
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

/// Closing gives the lock back. When the goodbye fails, the link is gone, and the lock with it.
async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the migration connection was lost at its end");
    }
}
