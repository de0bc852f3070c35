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
//! sqlx's: `sqlx migrate run`, `revert` and `info` work on the same folder and database, in any order with us.
//!
//! # The lock
//!
//! sqlx's own lock is taken, so that its CLI and we exclude each other, but it is *tried*, again and again with a
//! deadline, and never waited on: a session that waits for an advisory lock holds a snapshot, and `CREATE INDEX
//! CONCURRENTLY` in the session that has the lock waits for that snapshot, which PostgreSQL ends by killing one of
//! them. Everything happens on a connection of its own that is closed afterwards, so the lock ends with it, whatever
//! happened.
//!
//! # Losses
//!
//! A connection that is lost on the way is replaced, until the retry budget is spent, and the new one goes on from what the
//! database has on record. A migration without `-- no-transaction` commits together with its record, and its session's lock
//! outlives it: who has the lock afterwards sees what became of it. One that runs outside of a transaction may be done and not on
//! record; it is never repeated blindly, but named by [`Error::Interrupted`].
//!
//! # What is refused
//!
//! A database that has a migration which the program does not know, a file that was changed after it was applied, a new
//! file with an older version than one already applied, and going down over a version that has no down file.
//!
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
