//! Steps of a migration that are written in Rust: for data that SQL alone cannot change.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use db_core::sql::{self, Kind, Statement};
use db_core::{Class, Pool, PoolOptions, Tx, TxOptions};
use sqlx::Connection;
use sqlx::migrate::Migration;
use tokio::time::sleep;

use crate::batches::{BatchError, Batches, Progress as RowProgress, Report};
use crate::blockers::Observer;
use crate::outside::File;
use crate::progress::Progress;
use crate::session::answer;
use crate::step::{CHECK_CONSTRAINTS, FileToRun, Steps, Tries};
use crate::{Action, Error, Migrations, session, statements};

/// A limit that a step does not reach, below the longest that the server takes.
const NO_LIMIT: Duration = Duration::from_hours(24 * 20);

/// How long a step waits for its connection.
const ACQUIRE: Duration = Duration::from_secs(30);

/// How long the pool of a step may take to close.
const CLOSE: Duration = Duration::from_secs(5);

/// How often the session with the migration lock is asked whether it is there.
const ALIVE: Duration = Duration::from_secs(1);

/// How often the progress of a step in batches is logged.
const LOGGED: Duration = Duration::from_secs(10);

/// The rows that an error names.
const NAMED: usize = 10;

/// The error of a step: any. That of a statement is best left as it is, so that a step which waited for a lock in vain is tried again.
pub type StepError = Box<dyn StdError + Send + Sync>;

/// A step of a migration that is written in Rust. See [`Migrations::with_step`].
///
/// ```
/// use db_migrate::{DataStep, StepError};
/// use db_migrate::db_core::Tx;
///
/// struct SplitNames;
///
/// impl DataStep for SplitNames {
///     async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
///         let names: Vec<(i32, String)> = sqlx::query_as("select id, name from people").fetch_all(&mut *tx).await?;
///         for (id, name) in names {
///             let last = name.split_whitespace().last().unwrap_or(&name);
///             sqlx::query("update people set last_name = $2 where id = $1").bind(id).bind(last).execute(&mut *tx).await?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait DataStep: Send + Sync + 'static {
    /// Runs in the transaction that also records the version. It sees what the migrations before have done, and all that it does itself is
    /// rolled back if it fails, panics, or is dropped. It must neither commit nor use another connection, which would not see what this one
    /// has done.
    fn run(&self, tx: &mut Tx) -> impl Future<Output = Result<(), StepError>> + Send;

    /// Whether it may run again in the same call, after it was rolled back because it waited for a lock in vain or lost its connection (default:
    /// yes). No, if it does something outside of the database.
    fn may_run_again(&self) -> bool {
        true
    }
}

type Running<'r> = Pin<Box<dyn Future<Output = Result<(), StepError>> + Send + 'r>>;

/// [`DataStep`] as an object.
pub(crate) trait AnyStep: Send + Sync {
    fn run<'r>(&'r self, tx: &'r mut Tx) -> Running<'r>;
    fn may_run_again(&self) -> bool;
}

impl<S: DataStep> AnyStep for S {
    fn run<'r>(&'r self, tx: &'r mut Tx) -> Running<'r> {
        Box::pin(DataStep::run(self, tx))
    }

    fn may_run_again(&self) -> bool {
        DataStep::may_run_again(self)
    }
}

/// What a program has for the name of a step.
#[derive(Clone)]
pub(crate) enum RustStep {
    Transaction(Arc<dyn AnyStep>),
    Batches(Box<Batches>),
    /// Nothing: a check does without it.
    #[cfg(feature = "check")]
    Nothing,
}

impl fmt::Debug for RustStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transaction(_) => "Transaction",
            Self::Batches(_) => "Batches",
            #[cfg(feature = "check")]
            Self::Nothing => "Nothing",
        })
    }
}

impl Migrations {
    /// What the program runs in the place of files that say `-- db-migrate: step NAME`, up or down. The migration and its record are one
    /// transaction.
    ///
    /// The rest of such a file is one `do` block that raises an exception, so that sqlx stops there instead of recording the version as
    /// applied: `db-migrate new --step NAME` writes it. If it raises only where there is something to do (`if … then raise`), sqlx and programs
    /// without the step pass where there is nothing; without a condition, such programs run nothing ([`Error::NoStep`]).
    #[must_use]
    pub fn with_step(mut self, name: impl Into<String>, step: impl DataStep) -> Self {
        self.steps.insert(name.into(), RustStep::Transaction(Arc::new(step)));
        self
    }

    /// As [`Self::with_step`], for work on all rows of a table: in batches, each a transaction of its own, while others read and write them. The
    /// file begins with `-- no-transaction`, and `db-migrate new --batches NAME` writes it.
    ///
    /// While it runs, the version is under way: sqlx stops at it, and the next run goes on with it, as [`Batches`] does. Others who migrate wait
    /// for the migration lock meanwhile, so let a deployment do it before the services start. Rows that cannot be changed, or stay locked, fail
    /// the migration, and those that were changed stay so.
    #[must_use]
    pub fn with_batches(mut self, name: impl Into<String>, batches: Batches) -> Self {
        self.steps.insert(name.into(), RustStep::Batches(Box::new(batches)));
        self
    }

    /// Why the program cannot run the steps of these files.
    pub(crate) fn problems_of_steps<'m>(&self, files: impl Iterator<Item = &'m Migration>) -> Vec<Error> {
        let problem = |file: &Migration| {
            let (version, step): (_, Box<str>) = (file.version, step_name(file)?.into());
            match self.steps.get(&*step) {
                None if raises_always(file) => Some(Error::NoStep { version, step }),
                Some(RustStep::Transaction(_)) if file.no_tx => Some(Error::StepPlace { version, step }),
                Some(RustStep::Batches(_)) if !file.no_tx => Some(Error::StepPlace { version, step }),
                _ => None,
            }
        };
        files.filter_map(problem).collect()
    }
}

/// The name of the step that a file is, if it is one.
pub(crate) fn step_name(file: &Migration) -> Option<&str> {
    let mut directives = crate::directive::directives(file.sql.as_str());
    directives.find_map(|(_, text)| Some(text.strip_prefix("step")?.trim()))
}

/// Whether the file of a step raises its exception under no condition.
fn raises_always(file: &Migration) -> bool {
    let statements = sql::split(file.sql.as_str()).unwrap_or_default();
    raise(&statements) == Some(Raise::Always)
}

/// When other migrators stop at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raise {
    Always,
    IfThereIsSomethingToDo,
}

/// When the statements of a step's file raise an exception: they are one `do` block that does.
pub(crate) fn raise(statements: &[Statement<'_>]) -> Option<Raise> {
    let [statement] = statements else { return None };
    let mut tokens = statement.tokens();
    tokens.next().filter(|first| first.is("do"))?;
    let body = tokens.find(|token| token.kind == Kind::Literal)?.text;
    let body = if body.starts_with('$') { body.split_once('$')?.1.split_once('$')?.1 } else { &body[1..] };
    let words: Vec<String> = sql::tokens(body)
        .filter(|token| token.kind == Kind::Word)
        .map(|token| token.text.to_ascii_lowercase())
        .collect();
    let raise = words.windows(2).position(|pair| pair == ["raise", "exception"])?;
    let is_under_condition =
        words[..raise].iter().any(|word| ["if", "case", "for", "while"].contains(&&**word));
    Some(if is_under_condition { Raise::IfThereIsSomethingToDo } else { Raise::Always })
}

/// Rows that a step has left.
#[derive(Debug, Clone)]
pub struct RowsLeft(pub Report);

impl fmt::Display for RowsLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { refused, refusals, locked, .. } = &self.0;
        if *refused > 0 {
            let shown: Vec<String> = refusals.iter().take(NAMED).map(ToString::to_string).collect();
            write!(f, "rows that cannot be changed: {refused}, such as {}", shown.join("; "))?;
        }
        if !locked.is_empty() {
            let shown: Vec<String> =
                locked.iter().take(NAMED).map(|key| format!("({})", key.join(", "))).collect();
            let start = if *refused > 0 { "; " } else { "" };
            write!(f, "{start}rows that stayed locked: {}, such as {}", locked.len(), shown.join(", "))?;
        }
        Ok(())
    }
}

impl StdError for RowsLeft {}

impl Steps<'_> {
    /// Runs a step of the program in the place of a file, and records the version.
    pub(crate) async fn data_step(
        &mut self,
        file: FileToRun<'_>,
        (name, step): (&str, RustStep),
        is_under_way: bool,
        next: Option<FileToRun<'_>>,
    ) -> Result<(), Error> {
        match step {
            RustStep::Transaction(step) => self.step_in_transaction(file, name, &*step).await,
            RustStep::Batches(batches) => {
                self.step_in_batches(file, name, Some(*batches), is_under_way, next).await
            }
            #[cfg(feature = "check")]
            RustStep::Nothing if file.migration.no_tx => {
                self.step_in_batches(file, name, None, is_under_way, next).await
            }
            #[cfg(feature = "check")]
            RustStep::Nothing => self.step_in_transaction(file, name, &Nothing).await,
        }
    }

    /// Repeats the whole transaction while it waits for a lock in vain, if the step may run again.
    async fn step_in_transaction(
        &mut self,
        file: FileToRun<'_>,
        name: &str,
        step: &dyn AnyStep,
    ) -> Result<(), Error> {
        let version = file.migration.version;
        let options = PoolOptions::named("migration").max(1).acquire_timeout(ACQUIRE);
        let options = options.statement_timeout(NO_LIMIT).tx_timeout(NO_LIMIT).leak_after(NO_LIMIT);
        let pool = Pool::lazy(self.config, options.slow_statement(NO_LIMIT));
        let mut tries = Tries::new(version, self.patience);
        let done = loop {
            let (done, blockers) = self.try_step(&pool, file, name, step).await;
            match done {
                // An error of another kind came before the step began.
                Err(error)
                    if error.gives_way()
                        && (step.may_run_again() || matches!(error, Error::Failed { .. })) =>
                {
                    if let Err(over) = tries.give_way(error.into_cause(), blockers).await {
                        break Err(over);
                    }
                }
                done => break done,
            }
        };
        pool.close(CLOSE).await;
        done?;
        self.advance(None);
        if self.begin_anew(file).await? == self.recorded_in(file) {
            Ok(())
        } else {
            Err(self.moved(file.migration))
        }
    }

    async fn try_step(
        &self,
        pool: &Pool,
        file: FileToRun<'_>,
        name: &str,
        step: &dyn AnyStep,
    ) -> (Result<(), Error>, Vec<crate::Blocker>) {
        let version = file.migration.version;
        let options = TxOptions::default().read_write().resolve_commit();
        let mut tx = match pool.handle().begin_with(options).await {
            Ok(tx) => tx,
            Err(cause) => return (Err(failed(version, cause)), Vec::new()),
        };
        // The table's row comes first: if this session outlives the one with the lock, the next holder of the lock waits for it.
        let begins = format!(
            "{lock_timeout} {record} {only_one}; {role}",
            lock_timeout = self.lock_timeout,
            record = self.record_of(file, Duration::ZERO),
            only_one = if file.action == Action::Up { "on conflict (version) do nothing" } else { "" },
            role = self.set_role(),
        );
        let way_back = self.files.file(version, true).filter(|_| file.action == Action::Up);
        let history = self.history.as_ref().map(|history| history.done(file.migration, way_back));
        let ends = format!(
            "set local statement_timeout = 0; {CHECK_CONSTRAINTS}; {lock_timeout} set session authorization default; reset role; {history}",
            lock_timeout = self.lock_timeout,
            history = history.unwrap_or_default(),
        );
        let step_failed =
            |cause| Error::Step { version, step: name.into(), may_run_again: step.may_run_again(), cause };
        let observer = Observer::new(self.config, tx.pid(), self.files.shows_statements, self.lock_timeout.0);
        let work = async {
            let began = Instant::now();
            send(&mut tx, session::without_limits()).await.map_err(|cause| failed(version, cause))?;
            if send(&mut tx, begins).await.map_err(|cause| failed(version, cause))? == 0 {
                // Another holder of the lock has done it, while this one's session was lost.
                return Ok(false);
            }
            step.run(&mut tx).await.map_err(|cause| step_failed(redacted(cause)))?;
            let failed = |cause: db_core::Error| step_failed(cause.into());
            let took = format!(
                "update {} set execution_time = {} where version = {version}",
                self.table.name,
                began.elapsed().as_nanos()
            );
            send(&mut tx, ends + &took).await.map_err(failed)?;
            Ok(true)
        };
        let (done, blockers, observer) = observer.beside(version, work).await;
        observer.close().await;
        let done = match done {
            Ok(true) => tx.commit().await.map_err(|cause| step_failed(cause.into())),
            other => {
                if let Err(error) = tx.rollback().await {
                    tracing::debug!(version, %error, "the session of a step was lost before it was rolled back");
                }
                other.map(drop)
            }
        };
        (done, blockers)
    }

    /// Runs a step in batches, while the version is under way.
    async fn step_in_batches(
        &mut self,
        file: FileToRun<'_>,
        name: &str,
        batches: Option<Batches>,
        is_under_way: bool,
        next: Option<FileToRun<'_>>,
    ) -> Result<(), Error> {
        let version = file.migration.version;
        let outside =
            File { migration: file.migration, reverts: file.action == Action::Down, steps: Vec::new() };
        if is_under_way {
            self.resume(&outside).await?;
        } else {
            self.put_under_way(&outside).await?;
        }
        let began = Instant::now();
        if let Some(batches) = batches {
            let batches = batches.role(self.role).or_on_progress(logged(version));
            let mut tries = Tries::new(version, self.patience);
            let done = loop {
                let mut lost = None;
                let run = batches.run(self.config, async { lost = Some(until_lost(self.connection).await) });
                let done = run.await;
                if let Some(cause) = lost {
                    return Err(Error::Database { what: "hold the migration lock", cause });
                }
                match done {
                    // The process before, whose session with the migration lock was lost, may not have noticed yet.
                    Err(error @ BatchError::Busy { .. }) => tries.give_way(error.into(), Vec::new()).await?,
                    done => break done,
                }
            };
            let failed = |cause| Error::Step { version, step: name.into(), may_run_again: true, cause };
            let report = match done {
                Ok(report) => report,
                Err(error) => {
                    if !is_under_way && error.has_changed_nothing() {
                        self.take_back(&outside).await?;
                    }
                    return Err(failed(error.into()));
                }
            };
            if report.refused > 0 || !report.locked.is_empty() {
                return Err(failed(RowsLeft(report).into()));
            }
            tracing::info!(version, step = name, written = report.written, took = ?report.took, "a step is done");
        }
        let took =
            Progress::done(&self.table, version, 0, &statements::digest(&[]), began.elapsed().as_nanos());
        self.record(version, "record how long a step took", &took).await?;
        self.end(&outside, next).await
    }
}

/// A step that does nothing.
#[cfg(feature = "check")]
struct Nothing;

#[cfg(feature = "check")]
impl DataStep for Nothing {
    async fn run(&self, _: &mut Tx) -> Result<(), StepError> {
        Ok(())
    }
}

/// Returns the number of rows that were changed, or read.
async fn send(tx: &mut Tx, sql: String) -> Result<u64, db_core::Error> {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await?;
    Ok(done.rows_affected())
}

fn failed(version: i64, cause: db_core::Error) -> Error {
    Error::Failed { version, repeatable: None, at: None, cause: Box::new(cause) }
}

/// Ends when the session does not answer any more.
async fn until_lost(connection: &mut sqlx::PgConnection) -> db_core::Error {
    loop {
        sleep(ALIVE).await;
        if let Err(error) = answer(connection.ping()).await {
            return error.into();
        }
    }
}

fn logged(version: i64) -> impl Fn(&RowProgress) + Send + Sync + 'static {
    let last = std::sync::Mutex::new(Instant::now());
    move |progress| {
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.elapsed() >= LOGGED {
            *last = Instant::now();
            let RowProgress { read, written, estimate, rows_per_second, .. } = progress;
            tracing::info!(version, read, written, estimate, rows_per_second, "a step goes on");
        }
    }
}

/// The driver's own error may quote values.
fn redacted(error: StepError) -> StepError {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => db_core::Error::from(*error).into(),
        Err(other) => other,
    }
}

/// What is known of the server's or the driver's error in the causes of an error.
pub(crate) struct Known {
    pub(crate) class: Class,
    pub(crate) sqlstate: Option<String>,
}

impl Known {
    pub(crate) fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut error = Some(error);
        while let Some(this) = error {
            let found = match this.downcast_ref::<BatchError>() {
                Some(BatchError::Failed { cause, .. }) => Some(&**cause),
                Some(BatchError::Connect(error)) => {
                    let class = if error.failure().is_final() { Class::Refused } else { Class::NotReached };
                    return Some(Self { class, sqlstate: None });
                }
                _ => this.downcast_ref::<db_core::Error>(),
            };
            if let Some(found) = found {
                // Its session was lost, and nothing of it is stored.
                let is_undone = matches!(found, db_core::Error::RolledBack(_));
                let class = if is_undone { Class::Lost } else { found.class() };
                return Some(Self { class, sqlstate: found.sqlstate().map(Cow::into_owned) });
            }
            if let Some(found) = this.downcast_ref::<sqlx::Error>() {
                let code = found.as_database_error().and_then(sqlx::error::DatabaseError::code);
                return Some(Self { class: Class::of(found), sqlstate: code.map(Cow::into_owned) });
            }
            error = this.source();
        }
        None
    }
}

/// An error and its causes, in a line. Those that an error repeats in its own text are left out, and so is what quotes a value.
pub(crate) struct Causes<'e>(pub(crate) &'e StepError);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = String::new();
        let mut next: Option<&(dyn StdError + 'static)> = Some(&**self.0);
        while let Some(error) = next {
            let text = match error.downcast_ref::<sqlx::Error>() {
                Some(sqlx::Error::Database(error)) => match error.code() {
                    // The message of a data error has the value.
                    Some(code) if code.starts_with("22") => format!("a value was refused ({code})"),
                    code => format!("{} ({})", error.message(), code.unwrap_or_default()),
                },
                _ => error.to_string(),
            };
            if !before.contains(&text) {
                let start = if before.is_empty() { "" } else { ": " };
                write!(f, "{start}{text}")?;
                before = text;
            }
            // The driver's own cause is the same once more, with a line of the server's source.
            next = error.source().filter(|_| !error.is::<sqlx::Error>());
        }
        Ok(())
    }
}
