//! Errors of migrating.

use std::time::Duration;

use db_core::Class;
use db_core::sql::Position;

use crate::blockers::listed;
use crate::causes::{Causes, Known};
use crate::{Blocker, Finding, StepError};

/// Why migrations were not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder cannot be read as migrations.
    #[error("the migrations in {dir} cannot be read: {reason}")]
    Source {
        /// The folder.
        dir: String,
        /// sqlx's message.
        reason: String,
    },
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] db_core::ConnectError),
    /// The address leads through a pooler, which would share the session that holds the lock with other clients.
    #[error(
        "migrations of {to} need a session of their own, and the address leads through a pooler: use the server's own \
         address (DATABASE_URL_DIRECT)"
    )]
    Pooled {
        /// Role, host, port and database.
        to: String,
    },
    /// Another session held the migration lock for the whole deadline.
    #[error("the migration lock of database `{database}` was not free within {:.0} s{}", waited.as_secs_f64(), holder.map(|pid| format!("; the session of server process {pid} holds it")).unwrap_or_default())]
    Locked {
        /// The database.
        database: String,
        /// How long this process tried to take it.
        waited: Duration,
        /// The server process that holds the lock, if it is known.
        holder: Option<i32>,
    },
    /// A newer version of the program has migrated the database.
    #[error(
        "the database has migration {version}, which this program does not know: a newer version has applied it"
    )]
    Unknown {
        /// The version.
        version: i64,
    },
    /// A file was changed after it was applied, in more than its comments and its formatting.
    #[error(
        "migration {version} was changed after it was applied to this database{}",
        difference.as_ref().map(|difference| format!(":\n{difference}")).unwrap_or_default()
    )]
    Changed {
        /// The version.
        version: i64,
        /// The lines that differ, if the database has on record what was applied.
        difference: Option<String>,
    },
    /// The comments or the formatting of a file were changed after it was applied, and the program does not allow that
    /// ([`Edits::Refuse`](crate::Edits)).
    #[error(
        "comments or formatting of migration {version} were changed after it was applied to this database: restore the file, or put its \
         new checksum on record (`Migrations::rebless`)"
    )]
    Reformatted {
        /// The version.
        version: i64,
    },
    /// A newer version of this crate has written the history.
    #[error(
        "the history in {table} has form {form}, which a newer version of db-migrate writes: use that version"
    )]
    NewerHistory {
        /// The table, with its schema.
        table: String,
        /// The newest form in it.
        form: i16,
    },
    /// The ways back on record are not run, since others than the role that connects may have written them.
    #[error(
        "the way back in {table} is not run, since these roles may write to the table: {}. Look at what it has, revoke their rights, or \
         let the role that connects own it",
        roles.join(", ")
    )]
    WritableHistory {
        /// The table, with its schema.
        table: String,
        /// The roles.
        roles: Vec<String>,
    },
    /// There is nothing on record that could be compared, or changed.
    #[error("migration {version} is not on record with another checksum, so none was changed")]
    NothingToRebless {
        /// The version.
        version: i64,
    },
    /// A pending file has an older version than an applied one.
    #[error(
        "migration {version} is not applied, but the newer {newest} is: give it a version after {newest}"
    )]
    OutOfOrder {
        /// The version that is not applied.
        version: i64,
        /// The newest applied version.
        newest: i64,
    },
    /// A migration cannot be reverted.
    #[error("migration {version} has no down file, so the database cannot go down to version {target}")]
    NoDown {
        /// The version without a down file.
        version: i64,
        /// The version to go down to.
        target: i64,
    },
    /// What would be reverted is not what was planned: somebody has migrated meanwhile. Nothing was reverted.
    #[error("nothing was reverted: the database was migrated after the plan was made. Make a new plan")]
    NotAsPlanned,
    /// There is no such version.
    #[error("there is no migration {version}")]
    NoSuchVersion {
        /// The version.
        version: i64,
    },
    /// A migration failed. It was rolled back. Of one outside of a transaction, the statements before are done, and the next run goes
    /// on after them, also if the later ones are edited.
    #[error("{} failed{}: {cause}", subject(*version, repeatable.as_deref()), at.map(|at| format!(" at {at}")).unwrap_or_default())]
    Failed {
        /// The version. Of a repeatable file, the newest one.
        version: i64,
        /// The repeatable file, if it is one.
        repeatable: Option<Box<str>>,
        /// The place in the file, if the server names one.
        at: Option<Position>,
        /// The server's error.
        cause: Box<db_core::Error>,
    },
    /// A migration did not get its locks. It was rolled back, and those before it stay.
    #[error(
        "{} did not get its locks within {:.0} s, in {tries} tries: {}{}",
        subject(*version, repeatable.as_deref()),
        waited.as_secs_f64(),
        Causes(cause),
        if blockers.is_empty() { String::new() } else { format!("; it waited for {}", listed(blockers)) }
    )]
    Blocked {
        /// The version. Of a repeatable file, the newest one.
        version: i64,
        /// The repeatable file, if it is one.
        repeatable: Option<Box<str>>,
        /// How often it was tried.
        tries: u32,
        /// How long it was tried.
        waited: Duration,
        /// Those who were seen to keep the last try waiting.
        blockers: Vec<Blocker>,
        /// The last error.
        cause: StepError,
    },
    /// Files cannot be run as they are: for the server, or outside of a transaction. Nothing was run.
    #[error("nothing was run: {}", findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// The first finding of each pending file.
        findings: Vec<Finding>,
    },
    /// A statement outside of a transaction was cut off, and the catalog does not tell whether it is done. Nothing of the migration is
    /// run before a person has decided.
    #[error(
        "migration {version} was cut off in the statement at {position}: {reason}. Look, and record what you found \
         (`Migrations::repair`)"
    )]
    Interrupted {
        /// The version.
        version: i64,
        /// Where the statement begins.
        position: Position,
        /// What is known.
        reason: String,
    },
    /// A migration outside of a transaction is under way in the other direction.
    #[error(
        "migration {version} is under way {}: finish that, or record what you found (`Migrations::repair`)",
        if *reverts { "down" } else { "up" }
    )]
    UnderWay {
        /// The version.
        version: i64,
        /// Whether it goes down.
        reverts: bool,
    },
    /// Statements of a migration that is under way were edited after they had run.
    #[error(
        "migration {version} is under way, and its first {statements} statements, or its `-- no-transaction`, are not those that ran: \
         restore them, or record what you found (`Migrations::repair`)"
    )]
    Edited {
        /// The version.
        version: i64,
        /// The number of its first statements that have begun.
        statements: usize,
    },
    /// An index is to be built, and an invalid one of its name is there, which no migration that is under way has made.
    #[error(
        "migration {version} builds the index {index}, which is there already and invalid: drop it (`drop index concurrently {index}`) \
         or build it again (`reindex index concurrently {index}`)"
    )]
    InvalidIndex {
        /// The version.
        version: i64,
        /// The index.
        index: String,
    },
    /// No such migration, or no such statement of it, is on record as begun and not ended.
    #[error("migration {version} was not cut off there, so nothing was repaired")]
    NothingToRepair {
        /// The version.
        version: i64,
    },
    /// The server is a standby, which only reads.
    #[error("the server is a standby and only reads: migrate on its primary")]
    Standby,
    /// Another migrator recorded that a migration began, and not that it ended.
    #[error(
        "migration {version} is on record as begun and not ended: another migrator was cut off in it. Look at what it has done, and record \
         what you found (`Migrations::repair`)"
    )]
    Dirty {
        /// The version.
        version: i64,
    },
    /// A pending file has a line before its first statement that almost says `-- no-transaction`.
    #[error(
        "migration {version} runs in a transaction, although it has the line `{line}`: make `-- no-transaction` the first bytes of the \
         file, or remove the line"
    )]
    Directive {
        /// The version.
        version: i64,
        /// The line.
        line: String,
    },
    /// A step of the program failed. One in a transaction was rolled back; one in batches is under way, and the next run goes on with it.
    #[error("migration {version} failed in its step `{step}`: {}", Causes(cause))]
    Step {
        /// The version.
        version: i64,
        /// The step.
        step: Box<str>,
        /// Whether the step may run again without a person who looks.
        may_run_again: bool,
        /// Its error.
        cause: StepError,
    },
    /// A file is a step that the program does not have. Nothing was run.
    #[error(
        "migration {version} is the step `{step}`, which this program does not have: run it by the program that has it (`Migrations::with_step`)"
    )]
    NoStep {
        /// The version.
        version: i64,
        /// The step.
        step: Box<str>,
    },
    /// A file is a step that runs elsewhere than the file says. Nothing was run.
    #[error(
        "migration {version} is the step `{step}`: the file begins with `-- no-transaction` if the step runs in batches, and not otherwise"
    )]
    StepPlace {
        /// The version.
        version: i64,
        /// The step.
        step: Box<str>,
    },
    /// Repeatable files are to be applied, and what was applied of them cannot be recorded. Nothing was run.
    #[error(
        "nothing was run: what was applied of repeatable files is recorded in {table}, and this role cannot write it: the log says why"
    )]
    NoHistory {
        /// The table, with its schema.
        table: String,
    },
    /// There is no migration table, although it was made: its name does not lead to it.
    #[error("the migration table {name} was made, and is not found by that name")]
    NoTable {
        /// The name that the program gives.
        name: String,
    },
    /// A migration has moved or replaced the migration table, or its record.
    #[error("migration {version} has moved or replaced the table {table}, in which migrations are recorded")]
    Moved {
        /// The version.
        version: i64,
        /// The table, with its schema.
        table: String,
    },
    /// A migration is applied and on record, and has released the migration lock. Later ones were not run.
    #[error(
        "migration {version} has released the migration lock, so the later ones were not run: run them again"
    )]
    Unlocked {
        /// The version.
        version: i64,
    },
    /// Another statement failed.
    #[error("{what}: {cause}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// The error.
        cause: db_core::Error,
    },
}

impl Error {
    /// Whether the connection was lost or could not be opened, so that the next attempt may succeed from where this one ended.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => !error.failure().is_final(),
            Self::Failed { cause, .. } => is_lost(cause.class()),
            Self::Database { cause, .. } => is_lost(cause.class()),
            Self::Step { may_run_again, cause, .. } => {
                *may_run_again && Known::of(&**cause).is_some_and(|known| is_lost(known.class))
            }
            _ => false,
        }
    }

    /// The version that it is about, if it is about one.
    #[must_use]
    pub fn version(&self) -> Option<i64> {
        match self {
            Self::Unknown { version }
            | Self::Changed { version, .. }
            | Self::Reformatted { version }
            | Self::NothingToRebless { version }
            | Self::OutOfOrder { version, .. }
            | Self::NoDown { version, .. }
            | Self::NoSuchVersion { version }
            | Self::Failed { version, .. }
            | Self::Blocked { version, .. }
            | Self::Interrupted { version, .. }
            | Self::UnderWay { version, .. }
            | Self::Edited { version, .. }
            | Self::InvalidIndex { version, .. }
            | Self::NothingToRepair { version }
            | Self::Dirty { version }
            | Self::Directive { version, .. }
            | Self::Moved { version, .. }
            | Self::Step { version, .. }
            | Self::NoStep { version, .. }
            | Self::StepPlace { version, .. }
            | Self::Unlocked { version } => Some(*version),
            Self::Source { .. }
            | Self::Connect(_)
            | Self::Pooled { .. }
            | Self::Locked { .. }
            | Self::NewerHistory { .. }
            | Self::WritableHistory { .. }
            | Self::NotAsPlanned
            | Self::Refused { .. }
            | Self::Standby
            | Self::NoHistory { .. }
            | Self::NoTable { .. }
            | Self::Database { .. } => None,
        }
    }

    /// Whether it may go away when it is tried again.
    pub(crate) fn gives_way(&self) -> bool {
        self.sqlstate().is_some_and(|code| is_of_a_lock(&code))
    }

    /// The server's code, if a statement of the migration failed.
    pub(crate) fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Failed { cause, .. } => cause.sqlstate().map(std::borrow::Cow::into_owned),
            Self::Database { cause, .. } => cause.sqlstate().map(std::borrow::Cow::into_owned),
            Self::Blocked { cause, .. } | Self::Step { cause, .. } => Known::of(&**cause)?.sqlstate,
            _ => None,
        }
    }

    /// What made a migration fail.
    pub(crate) fn into_cause(self) -> StepError {
        match self {
            Self::Failed { cause, .. } => cause,
            Self::Step { cause, .. } => cause,
            other => other.into(),
        }
    }

    /// The error of a repeatable file, which bears the number of a version that is none of its own.
    pub(crate) fn of_repeatable(mut self, name: &str) -> Self {
        if let Self::Failed { repeatable, .. } | Self::Blocked { repeatable, .. } = &mut self {
            *repeatable = Some(name.into());
        }
        self
    }

    pub(crate) fn database(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::Database { what, cause: error.into() }
    }
}

fn subject(version: i64, repeatable: Option<&str>) -> String {
    match repeatable {
        Some(name) => format!("the repeatable file `{name}`"),
        None => format!("migration {version}"),
    }
}

/// Whether the code is that of a statement which waited for a lock in vain, or ended in a deadlock: 55P03 is `lock_not_available`, 40P01
/// `deadlock_detected`.
pub(crate) fn is_of_a_lock(code: &str) -> bool {
    matches!(code, "55P03" | "40P01")
}

fn is_lost(class: Class) -> bool {
    matches!(class, Class::Lost | Class::NotReached)
}
