//! Trying migrations on a server of their own before they meet a database that is in use.
//!
//! ```
//! # db_testkit::run(async |_db| {
//! # std::env::set_current_dir("../..").unwrap();
//! use db_migrate::Migrations;
//! use db_migrate::check::Check;
//!
//! let migrations = Migrations::from_dir("migrations").await?;
//! let checked = Check::new(&migrations).run().await?;
//! for file in &checked.files {
//!     for finding in &file.findings {
//!         println!("{}: {finding}", file.version);
//!     }
//! }
//! # assert!(!checked.files.is_empty());
//! # Ok::<_, db_migrate::check::CheckError>(())
//! # }).unwrap();
//! ```
//!
//! [`Check`] starts a PostgreSQL from the programs on this machine ([`db_embedded`]), applies each file there, and removes it again.
//!
//! - **The way back.** On a copy of the database, the file goes down and up again. After the down, the schema has to be that before the
//!   file; after the second up, that after the first. A file without a down file is told, and is no finding.
//! - **The trace.** Each statement is run by itself, and the server is asked afterwards: which locks it holds on tables that were there before, which
//!   of them it has written anew or read as a whole, and how long it took. This is done in a copy, and the file is then applied as a
//!   service would apply it.
//! - **The rules.** [`Rule`] names what hurts a service that runs meanwhile. A rule looks at what a statement has done: what is
//!   hidden in a `DO` block or in a function is found, and a table that the same file has made is left alone. Its text is looked at only to tell an
//!   update of all rows from others, and to name what was found.
//!
//! Repeatable files are applied at the end. Each then has its trace: it has to run a second time, and the rules look at what it does then.
//!
//! # Which tables count
//!
//! Those that others use when the file runs. With [`Check::after`], these are the tables that the applied files have made. Without it, each
//! file is taken for a deployment of its own, and the tables of all files before it count.
//!
//! # Allowing
//!
//! A comment before or in a statement, or behind it on its last line, allows a rule there:
//!
//! ```sql
//! -- db-migrate: allow ban-drop-column no program has read it since version 7
//! alter table shop drop column price;
//! ```
//!
//! The reason is asked for. `-- squawk-ignore RULE, …` before a statement and `-- squawk-ignore-file RULE, …` are taken, too: the rules that
//! squawk has as well have its names. A rule about the whole file, such as `down-differs`, is allowed by a comment anywhere in the file that
//! it is about.
//!
//! # Drift
//!
//! [`Check::drift`] compares a database with what its migrations make.

mod allow;
mod catalog;
mod dump;
mod error;
mod extensions;
mod file;
mod lost;
mod repeatable;
mod rule;
mod rules;
mod run;
mod schema;
mod throwaway;
mod trace;

pub use error::CheckError;
pub use file::{CheckedFile, WayBack};
pub use repeatable::CheckedRepeatable;
pub use rule::{Finding, Rule};
pub use run::{Check, Checked, Drift};
pub use schema::Difference;
pub use trace::{Lock, Mode, Traced};
