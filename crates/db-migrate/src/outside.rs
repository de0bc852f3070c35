//! Running a file outside of a transaction, statement by statement.

use std::time::{Duration, Instant};

use db_core::sql::Position;
use sqlx::migrate::Migration;
use sqlx::{AssertSqlSafe, Executor};

use crate::progress::Progress;
use crate::recovery::{self, Settled};
use crate::session::answer;
use crate::statements::{self, AfterLoss, CutOff, Place, Step};
use crate::step::{FileToRun, Steps, Tries, failed, failed_at, gives_way};
use crate::table::{bytes, literal};
use crate::{Action, Error, lock};

/// A file that runs.
pub(crate) struct File<'m> {
    pub(crate) migration: &'m Migration,
    pub(crate) reverts: bool,
    pub(crate) steps: Vec<Step<'m>>,
}

impl File<'_> {
    fn version(&self) -> i64 {
        self.migration.version
    }

    fn to_run(&self) -> FileToRun<'_> {
        let action = if self.reverts { Action::Down } else { Action::Up };
        FileToRun::new(self.migration, action)
    }

    /// The digest of the first statements.
    fn digest(&self, statements: usize) -> Vec<u8> {
        statements::digest(&self.steps[..statements])
    }

    fn interrupted(&self, nth: usize, reason: &str) -> Error {
        let (text, start) = (self.migration.sql.as_str(), self.steps[nth].statement.start);
        Error::Interrupted {
            version: self.version(),
            position: Position::of(text, start),
            reason: reason.to_owned(),
        }
    }
}

impl Steps<'_> {
    /// Runs a file's statements from the first one that is not done.
    ///
    /// While it is under way, its row in sqlx's table says that it did not succeed, so sqlx does not begin it again.
    pub(crate) async fn outside(
        &mut self,
        FileToRun { migration, action, .. }: FileToRun<'_>,
        is_under_way: bool,
        next: Option<FileToRun<'_>>,
    ) -> Result<(), Error> {
        let reverts = action == Action::Down;
        let file = File { migration, reverts, steps: statements::steps(migration) };
        let mut done = if is_under_way {
            self.resume(&file).await?
        } else {
            self.put_under_way(&file).await?;
            0
        };
        while done < file.steps.len() {
            if let Err(error) = self.run_statement(&file, done).await {
                if done == 0 && !error.is_transient() {
                    let taken_back = self.take_back(&file).await;
                    return Err(first_of(error, taken_back));
                }
                return Err(error);
            }
            done += 1;
        }
        self.end(&file, next).await
    }

    /// After the first statement has failed, nothing is under way, unless its end is not known.
    pub(crate) async fn take_back(&mut self, file: &File<'_>) -> Result<(), Error> {
        let version = file.version();
        let progress = self.progress(version).await?;
        if progress.is_none_or(|progress| progress.has_begun) {
            return Ok(());
        }
        let table = &self.table.name;
        let undone = if file.reverts {
            format!("update {table} set success = true where version = {version};")
        } else {
            format!("delete from {table} where version = {version};")
        };
        let sql = format!("{undone} {}", Progress::end(&self.table, version));
        self.record(version, "take back a migration that has done nothing", &sql).await?;
        self.drop_progress().await;
        Ok(())
    }

    pub(crate) async fn put_under_way(&mut self, file: &File<'_>) -> Result<(), Error> {
        let Migration { version, description, checksum, .. } = file.migration;
        let table = &self.table.name;
        let dirty = if file.reverts {
            format!("update {table} set success = false where version = {version};")
        } else {
            format!(
                "insert into {table} (version, description, success, checksum, execution_time)
                 values ({version}, {}, false, {}, -1);",
                literal(description),
                bytes(checksum)
            )
        };
        let sql = format!(
            "{} {dirty} {}",
            Progress::make(&self.table),
            Progress::begun(&self.table, *version, file.reverts)
        );
        self.record(*version, "put a migration under way", &sql).await?;
        self.table.has_progress = true;
        self.set_up(file).await
    }

    /// What a file finds in its session. A statement in a transaction has a lock timeout of its own.
    async fn set_up(&mut self, file: &File<'_>) -> Result<(), Error> {
        self.is_prepared = false;
        let sql = format!("{} set lock_timeout = 0; set standard_conforming_strings = on;", self.set_role());
        self.send(sql).await.map_err(|cause| failed(file.migration, cause))
    }

    /// Brings a new session to where the former one was. Returns the number of statements that are done.
    pub(crate) async fn resume(&mut self, file: &File<'_>) -> Result<usize, Error> {
        let version = file.version();
        let progress = self.progress(version).await?;
        let Some(progress) = progress else { return Err(Error::Dirty { version }) };
        if progress.reverts != file.reverts {
            return Err(Error::UnderWay { version, reverts: progress.reverts });
        }
        let (done, begun) = (progress.done, progress.done + usize::from(progress.has_begun));
        if !file.migration.no_tx || begun > file.steps.len() || !progress.is_of(&file.digest(begun)) {
            return Err(Error::Edited { version, statements: begun });
        }
        tracing::info!(version, done, of = file.steps.len(), "a migration that is under way goes on");
        self.set_up(file).await?;
        if done == file.steps.len() {
            return Ok(done);
        }
        for (nth, step) in file.steps[..done].iter().enumerate() {
            match step.after_loss {
                AfterLoss::Stays => {}
                AfterLoss::Repeat => self.patiently(file, nth, Attempt::Again).await?,
                AfterLoss::Lost => {
                    let reason = "what this statement made was lost with its session, and later statements may need it";
                    return Err(file.interrupted(nth, reason));
                }
            }
        }
        if !progress.has_begun {
            return Ok(done);
        }
        match self.settle(file, done, &progress).await? {
            Settled::Done => {
                self.record_done(file, done, Duration::ZERO).await?;
                Ok(done + 1)
            }
            Settled::DoneBy(statement) => {
                self.patiently(file, done, Attempt::Instead(statement)).await?;
                Ok(done + 1)
            }
            Settled::Undone => {
                self.record_undone(file, done).await?;
                Ok(done)
            }
            Settled::Undecided => Err(file.interrupted(done, "it may be done, in part or not at all")),
        }
    }

    /// Runs a statement, and records it as done.
    async fn run_statement(&mut self, file: &File<'_>, nth: usize) -> Result<(), Error> {
        if file.steps[nth].place == Place::Transaction {
            match self.patiently(file, nth, Attempt::First).await {
                Err(Error::Failed { cause, .. }) if is_refused_in_transaction(&cause) => {}
                done => return done,
            }
        }
        let version = file.version();
        let mut tries = Tries::new(version, self.patience);
        loop {
            let observer = self.observer();
            let (done, blockers, observer) = observer.beside(version, self.alone(file, nth)).await;
            self.observer = Some(observer);
            let error = match done {
                Err(error @ Error::Failed { .. }) if !error.is_transient() => error,
                done => return done,
            };
            let settled = match self.settle_after_error(file, nth).await {
                Ok(settled) => settled,
                Err(second) => return Err(first_of(error, Err(second))),
            };
            match (settled, error) {
                (Settled::Done, _) => return self.record_done(file, nth, Duration::ZERO).await,
                (Settled::DoneBy(statement), _) => {
                    return self.patiently(file, nth, Attempt::Instead(statement)).await;
                }
                (Settled::Undone, Error::Failed { cause, .. }) if gives_way(&cause) => {
                    tries.give_way(cause, blockers).await?;
                }
                (_, error) => return Err(error),
            }
        }
    }

    /// Runs a statement in a transaction, again and again while it waits for a lock in vain.
    async fn patiently(&mut self, file: &File<'_>, nth: usize, attempt: Attempt) -> Result<(), Error> {
        let version = file.version();
        let mut tries = Tries::new(version, self.patience);
        loop {
            let observer = self.observer();
            let (done, blockers, observer) =
                observer.beside(version, self.in_transaction(file, nth, &attempt)).await;
            self.observer = Some(observer);
            let error = match done {
                Err(error) if !error.is_transient() => error,
                done => return done,
            };
            self.roll_back().await?;
            match error {
                Error::Failed { cause, .. } if gives_way(&cause) => tries.give_way(cause, blockers).await?,
                error => return Err(error),
            }
        }
    }

    /// In a transaction with its record.
    async fn in_transaction(&mut self, file: &File<'_>, nth: usize, attempt: &Attempt) -> Result<(), Error> {
        let Step { statement, .. } = &file.steps[nth];
        let began = Instant::now();
        let failed = |cause| failed(file.migration, cause);
        // Unless the file has set one.
        let transaction = format!(
            "begin read write; select set_config('lock_timeout', '{}', true) where current_setting('lock_timeout') = '0'",
            self.lock_timeout.milliseconds()
        );
        self.send(transaction).await.map_err(failed)?;
        if let Attempt::Instead(instead) = attempt {
            self.send(instead.clone()).await.map_err(failed)?;
        } else {
            let done = self.send(statement.text.to_owned()).await;
            done.map_err(|cause| failed_at(file.migration, statement.start, cause))?;
        }
        let record = match attempt {
            Attempt::Again => String::new(),
            Attempt::First | Attempt::Instead(_) => {
                format!("{} {}", self.for_records(), self.done(file, nth, began.elapsed()))
            }
        };
        self.send(format!("{record} commit;")).await.map_err(failed)
    }

    /// Where no transaction may be, between two records.
    async fn alone(&mut self, file: &File<'_>, nth: usize) -> Result<(), Error> {
        let version = file.version();
        let Step { statement, cut_off, .. } = &file.steps[nth];
        if let Some(index) = recovery::obstacle(self.connection, cut_off).await? {
            return Err(Error::InvalidIndex { version, index });
        }
        let before = recovery::before(self.connection, cut_off).await?;
        let begins = Progress::begins(&self.table, version, &file.digest(nth + 1), &before);
        self.record(version, "record that a statement begins", &begins).await?;
        let waiting = lock::waiting(self.connection, self.session.key).await;
        if !waiting.is_empty() {
            tracing::warn!(
                version,
                ?waiting,
                "these processes wait for the migration lock within a statement: an index that is built concurrently would wait for \
                 them, and the server would end one of both"
            );
        }
        let began = Instant::now();
        let done = self.send(statement.text.to_owned()).await;
        done.map_err(|cause| failed_at(file.migration, statement.start, cause))?;
        self.record_done(file, nth, began.elapsed()).await
    }

    /// Looks at what a statement has left that the server ended with an error.
    async fn settle_after_error(&mut self, file: &File<'_>, nth: usize) -> Result<Settled, Error> {
        let progress = self.progress(file.version()).await?;
        let Some(progress) = progress.filter(|progress| progress.has_begun) else {
            return Ok(Settled::Undone);
        };
        let settled = match &file.steps[nth].cut_off {
            CutOff::Decide => Settled::Undone,
            _ => self.settle(file, nth, &progress).await?,
        };
        if settled == Settled::Undone {
            self.record_undone(file, nth).await?;
        }
        Ok(settled)
    }

    /// Looks at what a statement has left, and tidies up, while the observer tells for whom that waits.
    async fn settle(&mut self, file: &File<'_>, nth: usize, progress: &Progress) -> Result<Settled, Error> {
        let version = file.version();
        let mut tries = Tries::new(version, self.patience);
        loop {
            let observer = self.observer();
            let look = recovery::settle(self.connection, &file.steps[nth].cut_off, &progress.before);
            let (settled, blockers, observer) = observer.beside(version, look).await;
            self.observer = Some(observer);
            match settled {
                Err(Error::Database { cause, .. }) if gives_way(&cause) => {
                    tries.give_way(cause.into(), blockers).await?;
                }
                settled => return settled,
            }
        }
    }

    /// The statement that records a statement as done.
    fn done(&self, file: &File<'_>, nth: usize, took: Duration) -> String {
        Progress::done(&self.table, file.version(), nth + 1, &file.digest(nth + 1), took.as_nanos())
    }

    async fn record_done(&mut self, file: &File<'_>, nth: usize, took: Duration) -> Result<(), Error> {
        let done = self.done(file, nth, took);
        self.record(file.version(), "record that a statement is done", &done).await
    }

    async fn record_undone(&mut self, file: &File<'_>, nth: usize) -> Result<(), Error> {
        let undone = Progress::undone(&self.table, file.version(), &file.digest(nth));
        self.record(file.version(), "record that a statement left nothing", &undone).await
    }

    /// Records the version, and puts the session back.
    pub(crate) async fn end(&mut self, file: &File<'_>, next: Option<FileToRun<'_>>) -> Result<(), Error> {
        let Migration { version, description, checksum, .. } = file.migration;
        let table = &self.table;
        let record = if file.reverts {
            format!("delete from {} where version = {version}", table.name)
        } else {
            // When it is repeated, the time is on record, and the progress is not.
            format!(
                "update {} set success = true, installed_on = now(), description = {}, checksum = {},
                   execution_time = coalesce({}, execution_time)
                 where version = {version}",
                table.name,
                literal(description),
                bytes(checksum),
                Progress::nanoseconds(table, *version)
            )
        };
        let record = format!("{record}; {}", Progress::end(table, *version));
        let mut tries = Tries::new(*version, self.patience);
        loop {
            let observer = self.observer();
            let finish = self.finish(file.to_run(), "begin read write", &record, next);
            let (done, blockers, observer) = observer.beside(*version, finish).await;
            self.observer = Some(observer);
            match done {
                Err(Error::Failed { cause, .. }) if gives_way(&cause) => {
                    self.is_prepared = false;
                    self.roll_back().await?;
                    tries.give_way(cause, blockers).await?;
                }
                done => return done,
            }
        }
    }

    /// Reads the progress of a version, if it is under way.
    pub(crate) async fn progress(&mut self, version: i64) -> Result<Option<Progress>, Error> {
        if !self.table.has_progress {
            return Ok(None);
        }
        let sql = format!("begin; {} {} commit;", self.for_records(), Progress::query(&self.table, version));
        let rows = answer(self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
        let progress = rows.and_then(|rows| rows.first().map(Progress::read).transpose());
        let failed = Error::database("read the progress of a migration");
        match progress.map_err(failed) {
            Err(error) => Err(first_of(error, self.roll_back().await)),
            progress => progress,
        }
    }

    /// Changes our own tables in a transaction, which gives way to others.
    pub(crate) async fn record(
        &mut self,
        version: i64,
        what: &'static str,
        changes: &str,
    ) -> Result<(), Error> {
        let mut tries = Tries::new(version, self.patience);
        let sql = format!("begin read write; {} {changes} commit;", self.for_records());
        loop {
            let cause = match self.send(sql.clone()).await {
                Ok(()) => return Ok(()),
                Err(cause) => db_core::Error::from(cause),
            };
            let rolled_back = self.roll_back().await;
            if !gives_way(&cause) {
                return Err(first_of(Error::Database { what, cause }, rolled_back));
            }
            rolled_back?;
            tries.give_way(cause.into(), Vec::new()).await?;
        }
    }

    /// Drops the table of progress if no file is under way. The next run drops it otherwise.
    pub(crate) async fn drop_progress(&mut self) {
        if !self.table.has_progress {
            return;
        }
        let sql = format!("begin read write; {} {} commit;", self.for_records(), Progress::drop(&self.table));
        if let Err(error) = self.send(sql).await {
            tracing::debug!(%error, "the empty table of progress stays");
            if let Err(error) = self.roll_back().await {
                tracing::debug!(%error, "the migrating connection is lost");
            }
        }
    }

    /// The statements for a transaction in which records are written by the role that connected, whatever the file has set. It finds its
    /// own settings again afterwards.
    fn for_records(&self) -> String {
        let milliseconds = self.lock_timeout.milliseconds();
        format!(
            "set local statement_timeout = 0; set local lock_timeout = {milliseconds}; set local role to default;"
        )
    }

    async fn roll_back(&mut self) -> Result<(), Error> {
        self.send("rollback".to_owned()).await.map_err(Error::database("roll back"))
    }

    async fn send(&mut self, sql: String) -> Result<(), sqlx::Error> {
        self.connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop)
    }
}

/// What a statement is sent for, in a transaction.
enum Attempt {
    /// To be done, with its record.
    First,
    /// To have its effect in a new session. It is on record.
    Again,
    /// Another one in its place, with its record.
    Instead(String),
}

/// The first error, unless the connection was lost afterwards: then another one can go on.
fn first_of(first: Error, second: Result<(), Error>) -> Error {
    match second {
        Err(second) if second.is_transient() => second,
        Err(second) => {
            tracing::warn!(error = %second, "after an error, another one");
            first
        }
        Ok(()) => first,
    }
}

/// 25001 is `active_sql_transaction`, and 2D000 `invalid_transaction_termination`, of a procedure that commits.
pub(crate) fn is_refused_in_transaction(cause: &db_core::Error) -> bool {
    cause.sqlstate().is_some_and(|code| matches!(&*code, "25001" | "2D000"))
}
