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
//! The files are `VERSION_name.up.sql` and `VERSION_name.down.sql`, the table is `_sqlx_migrations`, the checksums are
//! The files are `VERSION_name.up.sql` and `VERSION_name.down.sql`, the table is `_sqlx_migrations`, and the checksums are
//! sqlx's: `sqlx migrate run`, `revert` and `info` work on the same folder and database, in any order with this crate.
//! # The lock
//!
//! sqlx's own lock is taken, so that its CLI and we exclude each other, but it is *tried*, again and again with a
//! The lock is sqlx's own, so its CLI and this crate exclude each other. It is *tried* again and again until a deadline, and
//! never waited on: a session that waits for an advisory lock holds a snapshot, and `CREATE INDEX CONCURRENTLY` in the session
//! that holds the lock waits for that snapshot. PostgreSQL ends this deadlock by an error in one of them. Everything runs on a
//! connection of its own, and closing that connection releases the lock in every case.
//! # Losses
//!
//! A connection that is lost on the way is replaced, until the retry budget is spent, and the new one goes on from what the
//! A connection that is lost meanwhile is replaced, until the retry budget is spent, and the new one goes on from the versions
//! that the database has on record. A migration without `-- no-transaction` commits together with its record, and its session
//! keeps the lock until it has ended, so the next holder of the lock sees the outcome. A migration that runs outside of a
//! transaction may be done and not be on record; it is never repeated blindly, but reported as [`Error::Interrupted`].
//! # What is refused
//!
//! A database that has a migration which the program does not know, a file that was changed after it was applied, a new
//! A database with a migration that the program does not know, a file that was changed after it was applied, a new file with a
//! version older than an applied one, and going down over a version without a down file.
//! # Features
//!
//! This crate has no cargo features.

mod error;
mod lock;
mod migrations;
mod session;
mod status;

pub use error::Error;
pub use migrations::{Migrations, Report};
pub use sqlx::migrate::Migrator;
pub use status::{State, Status};
