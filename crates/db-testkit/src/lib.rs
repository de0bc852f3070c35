//! A PostgreSQL database per test, for anyone on sqlx.
//!
//! ```
//! use db_testkit::TestDb;
//!
//! #[db_testkit::test]
//! async fn a_row_is_read_back(db: TestDb) -> Result<(), sqlx::Error> {
//!     sqlx::query("create table word (t text)").execute(&db.pool()).await?;
//!     sqlx::query("insert into word values ('hello')").execute(&db.pool()).await?;
//!
//!     let word: String = sqlx::query_scalar("select t from word").fetch_one(&db.pool()).await?;
//!
//!     assert_eq!(word, "hello");
//!     Ok(())
//! }
//! ```
//!
//! With `#[db_testkit::test(migrations = "../../migrations")]` the database has the tables of that folder, which is relative
//! to the `Cargo.toml` of the test's package. Without it, it is empty. Tests that need more of a hand in it call
//! [`TestDb::create`] and [`TestDb::empty`] themselves; tests that kill, freeze or fill up their server get one of their own
//! from [`TestServer::throwaway`].
//!
//! # Faults
//!
//! What code does when its database fails it, a test finds out with
//!
//! - [`Proxy`], a network between the code and its server that delays, resets, freezes, swallows and forgets connections,
//!   loses the answer to a `COMMIT`, and leads to another server when the first is none any more;
//! - [`TestServer::stop`] and [`TestServer::kill_backend`], for a server of its own;
//! - [`poll_then_drop`], which cancels a future at each point where it waits;
//! - [`TestDb::sessions`], [`TestDb::open_transactions`] and [`TestDb::locks`], which tell what all that has left on the server,
//!   and [`TestDb::until_sessions`], [`TestDb::until_quiet`] and [`until`], which wait for what should be left.
//!
//! ```
//! use db_testkit::{Proxy, TestDb};
//! use sqlx::{Connection, Executor, PgConnection};
//!
//! #[db_testkit::test]
//! async fn a_commit_whose_answer_is_lost_may_have_been_done(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
//!     db.pool().execute("create table word (t text)").await?;
//!     let proxy = Proxy::start(&db)?;
//!     let mut connection = PgConnection::connect(&proxy.url()).await?;
//!     let mut tx = connection.begin().await?;
//!     tx.execute("insert into word values ('hello')").await?;
//!
//!     proxy.cut_answer_to("COMMIT");
//!     let committed = tx.commit().await;
//!
//!     assert!(committed.is_err());
//!     let words: i64 = sqlx::query_scalar("select count(*) from word").fetch_one(&db.pool()).await?;
//!     assert_eq!(words, 1);
//!     db.until_quiet().await;
//!     Ok(())
//! }
//! ```
//!
//! # Through a pooler
//!
//! [`PgBouncer`] starts one in front of a test's database, in transaction mode or as it is told, with the settings of
//! production's file if that is [included](PgBouncerBuilder::include); it is killed and started again like a server. Its program
//! has to be on the machine, or be named by `DB_TESTKIT_PGBOUNCER`.
//!
//! # Which server
//!
//! When the environment variable `DATABASE_URL` is set and not empty: that one. Its role needs `CREATEDB`, its database
//! is used to create the others and otherwise left alone, and it must be PostgreSQL 13 or later itself, not a pooler, since
//! the kit holds locks in sessions.
//!
//! Otherwise one starts by itself, in half a second, from the PostgreSQL programs on this machine (see [`db_embedded`]). All
//! tests of this OS user that run at the same time share it, whether they are threads of `cargo test` or processes of
//! `cargo nextest`; the last one out ends it and removes its folder.
//!
//! # What a test logs
//!
//! `DB_TESTKIT_LOG=my_service=debug,db_core=info cargo test NAME -- --nocapture` prints what a test logs by `tracing`. Without the
//! variable the kit listens to nothing.
//!
//! # How it is fast
//!
//! The migrations run once, into a template whose name is a digest of them. Each test gets a copy of it, in less than a tenth of a second.
//! Changed migrations make another template.
//!
//! # What is left behind
//!
//! On a server of ours: nothing, whatever happens to the tests, `SIGKILL` included.
//!
//! On the server of `DATABASE_URL`: the template, so that the next run finds it; it is dropped when nobody used it for a
//! day. The databases of killed tests are dropped by the tests that come after them.
//!
//! # Features
//!
//! This crate has no cargo features.

mod address;
mod admin;
mod db;
mod deadline;
mod error;
mod given;
mod migrations;
mod pgbouncer;
mod polls;
mod proxy;
mod run;
mod server;
mod sessions;
mod stop;
mod sweep;
mod template;
mod until;

pub use db::TestDb;
/// Makes an `async fn(db: TestDb)` a test, in a runtime with two workers and with a database of its own.
///
/// It may return `()` or a `Result` whose error is `Debug`. The database is dropped when the test ends, in a panic
/// too. `migrations = "…"` names a folder relative to the `Cargo.toml` of the package; without it the database is empty.
///
/// ```
/// #[db_testkit::test(migrations = "tests/migrations")]
/// async fn the_table_is_there(db: db_testkit::TestDb) -> Result<(), sqlx::Error> {
///     sqlx::query("select id from builds").execute(&db.pool()).await?;
///     Ok(())
/// }
/// ```
///
/// What is not such a function is refused:
///
/// ```compile_fail
/// #[db_testkit::test]
/// fn not_async(db: db_testkit::TestDb) {}
/// ```
///
/// ```compile_fail
/// #[db_testkit::test(migration = "a-typo")]
/// async fn typo(db: db_testkit::TestDb) {}
/// ```
pub use db_testkit_macros::test;
pub use error::Error;
pub use migrations::Migrations;
pub use pgbouncer::{PgBouncer, PgBouncerBuilder};
pub use polls::poll_then_drop;
pub use proxy::Proxy;
pub use run::run;
pub use server::TestServer;
pub use sessions::{Lock, Session};
pub use stop::Stop;
pub use until::until;

/// For the macro's expansion only.
#[doc(hidden)]
pub mod __private {
    pub use crate::run::run_test;
}
