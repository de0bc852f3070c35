//! Migrations: the files and the table of sqlx, run so that nothing deadlocks and no lock stays behind.
//!
//! ```
//! # db_testkit::run(async |db| {
//! # std::env::set_current_dir("../..").unwrap();
//! # let config = db_core::Config::from_url(&db.url()).unwrap();
//! use db_migrate::Migrations;
//!
//! let migrations = Migrations::from_dir("migrations").await?;
//! let report = migrations.up(&config).await?;
//! println!("applied {:?}", report.changed);
//! # assert!(!report.changed.is_empty());
//! # Ok::<_, db_migrate::Error>(())
//! # }).unwrap();
//! ```
//!
//! The files are `VERSION_name.up.sql` and `VERSION_name.down.sql`, the table is `_sqlx_migrations`, and the checksums are
//! sqlx's: `sqlx migrate run`, `revert` and `info` work on the same folder and database, in any order with this crate.
//!
//! # The lock
//!
//! The lock is sqlx's own, so its CLI and this crate exclude each other. It is *tried* again and again until a deadline, and
//! never waited on: a session that waits for an advisory lock holds a snapshot, and `CREATE INDEX CONCURRENTLY` in the session
//! that holds the lock waits for that snapshot. PostgreSQL ends this deadlock by an error in one of them. Everything runs on a
//! connection of its own, and closing that connection releases the lock in every case.
//!
//! # The session
//!
//! A migration and its record are one transaction, unless the file begins with `-- no-transaction`. The table is found once, and
//! written to by its schema and name. Between two migrations the session is put back as it was: settings, role, search path,
//! temporary tables, prepared statements, cursors, `LISTEN`, and advisory locks but for the migration lock. Limits that the role or the
//! database has for its statements are off.
//!
//! # Waiting for others
//!
//! A migration that waits for a table keeps all others waiting who come after it, also readers. So a statement waits 5 s
//! ([`Migrations::with_lock_timeout`]); then the migration is rolled back, and tried again as a whole after a moment, for up to 10 min
//! ([`Migrations::with_patience`]). Who keeps it waiting is seen from a second connection, and logged. Outside of a transaction, the same holds
//! for each statement, but an index that is built concurrently waits without a limit, and its progress is logged.
//!
//! # Losses
//!
//! A connection that is lost meanwhile is replaced, until the retry budget is spent, and the new one goes on from the versions
//! that the database has on record. A migration without `-- no-transaction` commits together with its record, and its session
//! keeps the lock until it has ended, so the next holder of the lock sees the outcome.
//!
//! # Outside of a transaction
//!
//! A file that begins with `-- no-transaction` runs statement by statement ([`db_core::sql::split`]). A statement that PostgreSQL allows in a
//! transaction runs in one, together with the record that it is done. One that it refuses there, such as `CREATE INDEX CONCURRENTLY`, runs
//! between two records. While the file is under way, its row in sqlx's table has `success = false`, so that sqlx stops with `Dirty` instead of
//! beginning it again, and a table beside it has the progress. At the end, the row says `success = true`, and the table is gone.
//!
//! The next run, or the same one after a lost connection, goes on with the first statement that is not done. What was cut off outside of a
//! transaction is looked up:
//!
//! | statement | then |
//! |---|---|
//! | `CREATE INDEX CONCURRENTLY` | a valid index is done; an invalid one that it made is dropped, and it runs again; a person looks if somebody else builds one on the same table meanwhile |
//! | `DROP INDEX CONCURRENTLY` | it is done, or runs again |
//! | `REINDEX` | the invalid indexes that it made are dropped, and it runs again |
//! | `ALTER TABLE … DETACH PARTITION … CONCURRENTLY` | it is done, is finalized, or runs again |
//! | `VACUUM`, `CLUSTER`, `ALTER SYSTEM` | it runs again |
//! | others, such as `CREATE DATABASE`, or a procedure that commits | [`Error::Interrupted`]: a person looks, and tells by [`Migrations::repair`] |
//!
//! Settings that a statement makes are there for the later ones, also in a new session. A statement that failed can be edited, and so can
//! later ones; those that are done cannot.
//!
//! # On record
//!
//! Beside sqlx's table, one of its name and `_history` has each attempt ([`Migrations::history`]): who, where, when, for how long, and how it
//! failed. It has the SQL that was applied and its way back, and a digest of what the file says, without comments and formatting. What sqlx has
//! applied is adopted when it is first seen with the right checksum. So a comment that is edited later stops nothing
//! ([`Migrations::with_edits`]), a real change is refused with the lines that differ, and an older program can go down over versions that it
//! never saw ([`Migrations::with_stored_downs`]). A role that may not make or write the table migrates without it.
//!
//! # Repeatable files
//!
//! Views and functions are written as a whole. Files of the folder's own folder `repeatable`, which sqlx does not see, are applied after the
//! versioned ones, in the order of their names, when they say something else than what was applied last ([`Migrations::with_repeatable`]), and after a way
//! back. The history has their record.
//!
//! # Steps in Rust
//!
//! A file that says `-- db-migrate: step NAME` stands for a step of the program: in the transaction of its record
//! ([`Migrations::with_step`]), or in batches while others write ([`Migrations::with_batches`]). Its SQL raises an exception, so that sqlx stops there.
//!
//! # The command
//!
//! `db-migrate` (feature `cli`) takes the flags and variables of `sqlx migrate`: `plan`, `status`, `validate`, `check`, `drift`, `up`, `down`, `redo`,
//! `baseline`, `new`, `repair`, `rebless` and `history`.
//!
//! # Trying them first
//!
//! With the feature `check`, `db_migrate::check` runs migrations on a server of their own: up, down and up again, with the locks of each statement, and
//! rules for what hurts a service that runs meanwhile. It also compares a database with what its migrations make.
//!
//! # What is refused
//!
//! A database with a migration that the program does not know, or that another migrator began and did not end; a file that was
//! changed after it was applied, in more than comments and formatting; a new file with a version older than an applied one; a pending file that almost says
//! `-- no-transaction`; one with the data of a `COPY`, a command of psql, a NUL byte or a string without an end, and, outside of a transaction,
//! one with `BEGIN`, or with `SET LOCAL`, `LOCK` or `DECLARE`, whose effect would end with the statement; a folder with two files of one version, or with a file whose name has none; a standby; going down over a
//! version without a down file; a step that the program does not have, or whose file others could run; a comment that begins with `db-migrate:` and says
//! nothing that is known; and a repeatable file that is no transaction, or whose record this role cannot write.
//!
//! # Re-keying
//!
//! [`rekey`] seals the values of a column under another key while the service runs, and [`batches`] is its engine, for any other work
//! on the rows of a table.
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `clap` | no | subcommands of a program: `KeysArgs` for the encryption keys on record, `command` with `rekey` and `verify` |
//! | `check` | no | trying migrations on a server of their own, and comparing a database with them |
//! | `cli` | no | the command `db-migrate` |

pub mod batches;
mod blockers;
mod causes;
#[cfg(feature = "check")]
pub mod check;
#[cfg(feature = "clap")]
pub mod command;
mod contents;
mod data_step;
mod directive;
mod error;
mod files;
mod history;
#[cfg(feature = "clap")]
mod keys;
mod lock;
mod look;
mod migrations;
mod on_record;
mod outside;
mod plan;
mod progress;
mod recovery;
pub mod rekey;
mod repair;
mod repeatable;
mod run;
mod session;
mod sqlx_toml;
mod statements;
mod status;
mod step;
mod summary;
mod table;

pub use blockers::Blocker;
pub use data_step::{DataStep, RowsLeft, StepError};
pub use error::Error;
pub use history::{Action, Attempt, Outcome};
#[cfg(feature = "clap")]
pub use keys::{KeysArgs, KeysError};
pub use migrations::{Edits, Migrations};
pub use plan::{Plan, Planned};
pub use repair::Repair;
pub use repeatable::Repeatable;
pub use run::Report;
pub use sqlx::migrate::Migrator;
pub use statements::Finding;
pub use status::{State, Status};
pub use summary::Summary;

pub use db_core::{self, Schema};

/// The migration that makes the crate's table `batch_runs`, which has the progress of [`batches`]. Copy it into your `migrations/`
/// under a version of your own.
pub const SCHEMA: &[Schema] = &[Schema {
    name: "batch_runs",
    up: include_str!("../schema/1_batch_runs.up.sql"),
    down: include_str!("../schema/1_batch_runs.down.sql"),
}];
