//! Steps of a migration that are written in Rust: for data that SQL alone cannot change.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use db_core::Tx;
use sqlx::migrate::Migration;

use crate::batches::Batches;
use crate::step::{FileToRun, Steps};
use crate::{Error, Migrations};

mod form;
mod rows;
mod transaction;

pub(crate) use form::{raise, step_name};
pub use rows::RowsLeft;

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
                None if form::raises_always(file) => Some(Error::NoStep { version, step }),
                Some(RustStep::Transaction(_)) if file.no_tx => Some(Error::StepPlace { version, step }),
                Some(RustStep::Batches(_)) if !file.no_tx => Some(Error::StepPlace { version, step }),
                _ => None,
            }
        };
        files.filter_map(problem).collect()
    }
}

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
