//! Running one migration.

use std::time::{Duration, Instant};

use db_core::Config;
use db_core::sql::Position;
use sqlx::migrate::Migration;
use sqlx::postgres::{PgConnection, PgDatabaseError, PgErrorPosition, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::time::sleep;

use crate::blockers::{Blocker, Observer, listed};
use crate::data_step::step_name;
use crate::error::is_of_a_lock;
use crate::history::{Action, History, Noted};
use crate::session::{LockTimeout, Session, answer};
use crate::status::Look;
use crate::table::{Table, bytes, literal, set_role};
use crate::{Error, Migrations, StepError};

/// "Undefined table."
const NO_TABLE: &str = "42P01";

/// Deferred constraints are checked as the migration left the session.
pub(crate) const CHECK_CONSTRAINTS: &str = "set constraints all immediate";

/// A file, and what running it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileToRun<'m> {
    pub(crate) migration: &'m Migration,
    /// Up, down or repeat.
    pub(crate) action: Action,
    /// The name of the step that runs in its place, if it is one.
    step: Option<&'m str>,
}

impl<'m> FileToRun<'m> {
    pub(crate) fn new(migration: &'m Migration, action: Action) -> Self {
        Self { migration, action, step: step_name(migration) }
    }

    /// Whether it is sure that its text runs in a transaction.
    fn is_plain(self) -> bool {
        !self.migration.no_tx && self.step.is_none()
    }
}

/// A session that runs migrations and records them in a table.
pub(crate) struct Steps<'c> {
    pub(crate) connection: &'c mut PgConnection,
    pub(crate) session: Session,
    pub(crate) table: Table,
    /// The role that migrations run as.
    pub(crate) role: Option<&'c str>,
    /// Whether the next migration has been prepared, by the last message for the one before it.
    pub(crate) is_prepared: bool,
    pub(crate) lock_timeout: LockTimeout,
    /// How long a migration is tried.
    pub(crate) patience: Duration,
    /// Not there while it watches.
    pub(crate) observer: Option<Observer>,
    /// Not there if this role may not write it.
    pub(crate) history: Option<History>,
    /// The migrations that the program knows.
    pub(crate) files: &'c Migrations,
    pub(crate) config: &'c Config,
}

impl Steps<'_> {
    /// Runs files in this order, those with `true` from where they were cut off.
    pub(crate) async fn run_files(&mut self, files: &[(FileToRun<'_>, bool)]) -> Result<(), Error> {
        for (nth, (file, is_under_way)) in files.iter().enumerate() {
            let next = files.get(nth + 1).map(|(next, _)| *next);
            self.run_file(*file, *is_under_way, next).await?;
        }
        Ok(())
    }

    /// Runs an up file and records its version, or runs a down file and removes that record, or runs a repeatable one, or goes on with one
    /// that is under way. `next` is what is run next.
    ///
    /// The migration and its record are one transaction, in two round trips, unless the file begins with `-- no-transaction`.
    async fn run_file(
        &mut self,
        file: FileToRun<'_>,
        is_under_way: bool,
        next: Option<FileToRun<'_>>,
    ) -> Result<(), Error> {
        self.begin_attempt(file).await?;
        let no_tx = file.migration.no_tx;
        // A program without the step runs the file as sqlx does.
        let step = file.step.and_then(|name| Some((name, self.files.steps.get(name)?.clone())));
        let done = match step {
            Some(step) if no_tx || !is_under_way => {
                // Boxed: it is large, and few migrations have one.
                Box::pin(self.data_step(file, step, is_under_way, next)).await
            }
            None if !no_tx && !is_under_way => self.repeated(file, next).await,
            _ => self.outside(file, is_under_way, next).await,
        };
        self.end_attempt(file, done).await
    }

    /// Records that an attempt begins, unless the end of the one before has.
    async fn begin_attempt(&mut self, file: FileToRun<'_>) -> Result<(), Error> {
        let Some(history) = self.history.as_ref().filter(|it| !it.has_begun(file)) else {
            return Ok(());
        };
        let begins = history.begins(file);
        self.record(file.migration.version, "record that a migration begins", &begins).await?;
        self.advance(Some(file));
        Ok(())
    }

    /// Records how an attempt has failed, as far as that can be done: the error that is told is the attempt's.
    async fn end_attempt(&mut self, file: FileToRun<'_>, done: Result<(), Error>) -> Result<(), Error> {
        let done = match done {
            Err(error) if file.action == Action::Repeat => {
                Err(error.of_repeatable(&file.migration.description))
            }
            done => done,
        };
        let (Err(error), Some(history)) = (&done, &self.history) else { return done };
        if error.is_transient() {
            return done;
        }
        let sql = format!(
            "rollback; set session authorization default; reset role; begin read write;
             set local statement_timeout = 0; {lock_timeout} {failed} commit;",
            lock_timeout = self.lock_timeout,
            failed = history.failed(file, error),
        );
        let version = file.migration.version;
        if let Err(error) = answer(self.connection.execute(sqlx::raw_sql(AssertSqlSafe(sql)))).await {
            tracing::warn!(version, %error, "that a migration failed is not in the history");
        }
        self.advance(None);
        done
    }

    /// Records in the history what others have done: what is applied and not there, and what is there and not applied any more. Returns whether there is any of the latter.
    pub(crate) async fn catch_up(&mut self, look: &Look) -> Result<bool, Error> {
        let Some(history) = &mut self.history else { return Ok(false) };
        let gone = history.gone(self.connection, &self.table).await?;
        let gone: Vec<Noted<'_>> = gone
            .iter()
            .map(|(version, description)| Noted {
                version: *version,
                description,
                file: None,
                way_back: None,
            })
            .collect();
        let files = self.files;
        let adopted = look.not_in_history.iter().filter_map(|version| files.file(*version, false));
        let adopted: Vec<Noted<'_>> =
            adopted.map(|file| Noted::of(file, files.file(file.version, true))).collect();
        let ((Some(noted), _) | (None, Some(noted))) = (gone.first(), adopted.first()) else {
            return Ok(false);
        };
        let is_any_gone = !gone.is_empty();
        let any = noted.version;
        for version in gone.iter().map(|noted| noted.version) {
            tracing::warn!(version, "another migrator has reverted a migration");
        }
        let versions: Vec<i64> = adopted.iter().map(|noted| noted.version).collect();
        if !versions.is_empty() {
            tracing::info!(?versions, "migrations are in the history now that another migrator has applied");
        }
        let changes =
            history.noted(Action::Gone, None, &gone) + &history.noted(Action::Adopted, None, &adopted);
        self.record(any, "record what another migrator has done", &changes).await?;
        Ok(is_any_gone)
    }

    pub(crate) fn advance(&mut self, begun: Option<FileToRun<'_>>) {
        if let Some(history) = &mut self.history {
            history.advance(begun);
        }
    }

    /// Takes the observer. It is to be put back after its look.
    pub(crate) fn observer(&mut self) -> Observer {
        self.observer.take().expect("it is put back after each look")
    }

    /// Ends the observing connection, and leaves no table of progress. The migrating connection stays.
    pub(crate) async fn close(mut self) {
        self.drop_progress().await;
        if let Some(observer) = self.observer {
            observer.close().await;
        }
    }

    /// Repeats the whole transaction while it waits for a lock in vain. Others who wait behind it get their turn in between.
    async fn repeated(&mut self, file: FileToRun<'_>, next: Option<FileToRun<'_>>) -> Result<(), Error> {
        let version = file.migration.version;
        let mut tries = Tries::new(version, self.patience);
        loop {
            let observer = self.observer();
            let once = self.once(file, next);
            let (done, blockers, observer) = observer.beside(version, once).await;
            self.observer = Some(observer);
            let cause = match done {
                Err(Error::Failed { cause, .. }) if gives_way(&cause) => cause,
                done => return done,
            };
            self.is_prepared = false;
            let recorded_in = loop {
                match self.begin_anew(file).await {
                    Err(Error::Database { cause, .. }) if gives_way(&cause) && !tries.are_over() => {
                        tracing::warn!(version, %cause, "whether a migration is on record is not known yet");
                        sleep(jitter()).await;
                    }
                    looked => break looked?,
                }
            };
            if recorded_in == self.recorded_in(file) {
                // It was committed, and the look for its record waited.
                return Ok(());
            }
            tries.give_way(cause, blockers).await?;
        }
    }

    async fn once(&mut self, file: FileToRun<'_>, next: Option<FileToRun<'_>>) -> Result<(), Error> {
        let began = Instant::now();
        self.run(file.migration).await?;
        let record = self.record_of(file, began.elapsed());
        self.finish(file, CHECK_CONSTRAINTS, &record, next).await
    }

    /// The statement that puts a file on record in sqlx's table, which knows no repeatable ones.
    pub(crate) fn record_of(&self, file: FileToRun<'_>, took: Duration) -> String {
        let Migration { version, description, checksum, .. } = file.migration;
        let table = &self.table.name;
        match file.action {
            Action::Repeat => String::new(),
            Action::Down => format!("delete from {table} where version = {version}"),
            _ => format!(
                "insert into {table} (version, description, success, checksum, execution_time)
                 values ({version}, {description}, true, {checksum}, {nanoseconds})",
                description = literal(description),
                checksum = bytes(checksum),
                nanoseconds = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX),
            ),
        }
    }

    /// The table that has the record of a file when it is done, if one has.
    pub(crate) fn recorded_in(&self, file: FileToRun<'_>) -> Option<i64> {
        (file.action != Action::Down).then_some(self.table.oid)
    }

    /// Rolls back, and puts the session back. Returns the id of the table that has the record, if there is one.
    pub(crate) async fn begin_anew(&mut self, file: FileToRun<'_>) -> Result<Option<i64>, Error> {
        let version = file.migration.version;
        let sql = format!(
            "rollback; set session authorization default; reset role;
             begin; {put_back} {look} commit;",
            put_back = self.session.put_back(),
            look = self.look(file),
        );
        let answered = self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        let (has_lock, recorded_in) = answered
            .and_then(|rows| read(&rows))
            .map_err(Error::database("put the session back after a migration gave way"))?;
        if has_lock { Ok(recorded_in) } else { Err(Error::Unlocked { version }) }
    }

    /// Looks for the record of a file. That of a repeatable one is in the history.
    fn look(&self, file: FileToRun<'_>) -> String {
        match (file.action, &self.history) {
            (Action::Repeat, Some(history)) => {
                format!("select {}::int8 from {};", self.table.oid, history.open_and_done())
            }
            _ => format!(
                "select tableoid::int8 from {} where version = {};",
                self.table.name, file.migration.version
            ),
        }
    }

    async fn run(&mut self, migration: &Migration) -> Result<(), Error> {
        if !self.is_prepared {
            let prepared = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(self.preparation()))).await;
            prepared.map_err(|cause| failed(migration, cause))?;
        }
        let done = self.connection.execute(sqlx::raw_sql(migration.sql.clone())).await;
        done.map(drop).map_err(|cause| failed_at(migration, 0, cause))
    }

    /// Records, commits, puts the session back, and looks at what the migration has done to the table and the lock. Prepares
    /// the next migration. `before` stands before the record.
    pub(crate) async fn finish(
        &mut self,
        file: FileToRun<'_>,
        before: &str,
        record: &str,
        next: Option<FileToRun<'_>>,
    ) -> Result<(), Error> {
        // The session is put back in a transaction of its own: of a message without, the next one's `begin` would make one of both.
        // Deferred constraints are checked as the migration left the session, as a commit would check them. The record is written
        // by the role that connected, and no time limit that the migration has left ends what follows.
        let migration = file.migration;
        let version = migration.version;
        let history = self.history.as_ref().map(|history| {
            let way_back = self.files.file(version, true).filter(|_| file.action == Action::Up);
            let begins = next.map(|next| history.begins(next)).unwrap_or_default();
            history.done(migration, way_back) + &begins
        });
        let history = history.unwrap_or_default();
        self.is_prepared = next.is_some_and(FileToRun::is_plain);
        let prepare = if self.is_prepared { self.preparation() } else { String::new() };
        let sql = format!(
            "{before}; set statement_timeout = 0; {lock_timeout}
             set session authorization default; reset role; {record}; {history} commit;
             begin;
             {put_back}
             {look}
             commit;
             {prepare}",
            lock_timeout = self.lock_timeout,
            put_back = self.session.put_back(),
            look = self.look(file),
        );
        let answered = self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        let rows = answered.map_err(|cause| {
            if self.is_missing(&cause) { self.moved(migration) } else { failed(migration, cause) }
        })?;
        let (has_lock, recorded_in) =
            read(&rows).map_err(Error::database("read the record of a migration"))?;
        self.advance(next);
        if recorded_in != self.recorded_in(file) {
            return Err(self.moved(migration));
        }
        if has_lock { Ok(()) } else { Err(Error::Unlocked { version }) }
    }

    /// The statements before a migration's own.
    fn preparation(&self) -> String {
        format!("{}begin", self.set_role())
    }

    /// The statement that sets the role of the migrations, if they have one.
    pub(crate) fn set_role(&self) -> String {
        set_role(self.role)
    }

    /// Whether the server does not find the table. A deferred trigger may miss another one.
    fn is_missing(&self, error: &sqlx::Error) -> bool {
        error.as_database_error().is_some_and(|error| {
            error.code().is_some_and(|code| code == NO_TABLE)
                && error.message().contains(&format!("{}\"", self.table.relation))
        })
    }

    pub(crate) fn moved(&self, migration: &Migration) -> Error {
        Error::Moved { version: migration.version, table: self.table.name.clone() }
    }
}

/// Whether the lock is held, and the id of the table that has the record.
fn read(rows: &[PgRow]) -> Result<(bool, Option<i64>), sqlx::Error> {
    let [held, again, record @ ..] = rows else { return Err(sqlx::Error::RowNotFound) };
    let recorded_in = record.first().map(|row| row.try_get(0)).transpose()?;
    Ok((Session::has_lock(held, again)?, recorded_in))
}

/// The tries of what may have to give way.
pub(crate) struct Tries {
    version: i64,
    began: Instant,
    count: u32,
    patience: Duration,
}

impl Tries {
    pub(crate) fn new(version: i64, patience: Duration) -> Self {
        Self { version, began: Instant::now(), count: 0, patience }
    }

    fn are_over(&self) -> bool {
        self.began.elapsed() >= self.patience
    }

    /// Waits before the next try. Nothing of the last one is left in the server.
    ///
    /// # Errors
    ///
    /// [`Error::Blocked`] when the patience is over.
    pub(crate) async fn give_way(&mut self, cause: StepError, blockers: Vec<Blocker>) -> Result<(), Error> {
        self.count += 1;
        let (version, tries, waited) = (self.version, self.count, self.began.elapsed());
        if self.are_over() {
            return Err(Error::Blocked { version, repeatable: None, tries, waited, blockers, cause });
        }
        let pause = jitter();
        tracing::warn!(version, tries, ?waited, ?pause, %cause, blockers = listed(&blockers), "a migration gave way");
        sleep(pause).await;
        Ok(())
    }
}

/// Between two tries, so that those who wait behind a migration get their turn.
fn jitter() -> Duration {
    Duration::from_millis(fastrand::u64(100..500))
}

pub(crate) fn gives_way(cause: &db_core::Error) -> bool {
    cause.sqlstate().is_some_and(|code| is_of_a_lock(&code))
}

pub(crate) fn is_missing_table(cause: &db_core::Error) -> bool {
    cause.sqlstate().is_some_and(|code| code == NO_TABLE)
}

pub(crate) fn failed(migration: &Migration, cause: sqlx::Error) -> Error {
    Error::Failed { version: migration.version, repeatable: None, at: None, cause: Box::new(cause.into()) }
}

/// As [`failed`], of a text that begins at this byte of the file.
pub(crate) fn failed_at(migration: &Migration, start: usize, cause: sqlx::Error) -> Error {
    let sql = migration.sql.as_str();
    let position = cause.as_database_error().and_then(|error| {
        match error.try_downcast_ref::<PgDatabaseError>()?.position()? {
            // From 1 on, in characters.
            PgErrorPosition::Original(character) => {
                let text = &sql[start..];
                Some(start + text.char_indices().nth(character - 1).map_or(text.len(), |(byte, _)| byte))
            }
            PgErrorPosition::Internal { .. } => None,
        }
    });
    let at = position.map(|byte| Position::of(sql, byte));
    Error::Failed { version: migration.version, repeatable: None, at, cause: Box::new(cause.into()) }
}
