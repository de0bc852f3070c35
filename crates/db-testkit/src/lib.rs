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
//! `#[db_testkit::test(migrations = "../../migrations")]` applies the migrations of that folder, which is relative to the
//! `Cargo.toml` of the test's package. Without it the database is empty. Tests that need more control call [`TestDb::create`]
//! and [`TestDb::empty`] themselves; tests that kill, freeze or fill their server get one of their own from
//! [`TestServer::throwaway`].
//!
//! # Faults
//!
//! To test how code handles a failing database:
//!
//! - [`Proxy`], a network between the code and its server that delays, resets, freezes, swallows and forgets connections, loses
//!   the answer to a `COMMIT`, and can lead to another server after a failover;
//! - [`TestServer::stop`] and [`TestServer::kill_backend`], for a server of the test's own;
//! - [`poll_then_drop`], which cancels a future at each point where it waits;
//! - [`TestDb::sessions`], [`TestDb::open_transactions`] and [`TestDb::locks`], which show what is left on the server, and
//!   [`TestDb::until_sessions`], [`TestDb::until_quiet`] and [`until`], which wait for an expected state.
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
//! # Without a database
//!
//! With the feature `script`, a `Script` is a PostgreSQL that has no database: rules say what it answers to which statement, with
//! typed rows, an error with all its fields, a notice, a delay, silence, half a message or a closed connection. The driver and the
//! pool are real. It is there in a millisecond or two, and answers what no server can be made to answer on demand: a serialization
//! failure at the second try, or a `COMMIT` whose answer is lost.
//!
//! # Through a pooler
//!
//! [`PgBouncer`] starts one in front of a test's database, in transaction mode by default, with production's configuration file
//! if that is [included](PgBouncerBuilder::include). It can be killed and restarted. Its program must be on the machine, or be
//! named by `DB_TESTKIT_PGBOUNCER`.
//!
//! # Failover and replicas
//!
//! [`Cluster`] starts a primary and its standbys. A test promotes and demotes them, stops them, pauses their replay, cuts them
//! off, and asks how far they are behind.
//!
//! # Which server
//!
//! If the environment variable `DATABASE_URL` is set and not empty, tests use that server. Its role needs `CREATEDB`. The kit
//! connects to its database to create others and changes nothing else in it. The address must lead to PostgreSQL 13 or later
//! itself, not to a pooler, since the kit holds locks in sessions.
//!
//! Otherwise the kit starts a server, in half a second, from the PostgreSQL programs on this machine (see [`db_embedded`]). All
//! tests of this OS user that run at the same time share it, whether they are threads of `cargo test` or processes of `cargo
//! nextest`; the end of the last one stops the server and removes its folder.
//!
//! # What a test logs
//!
//! `DB_TESTKIT_LOG=my_service=debug,db_core=info cargo test NAME -- --nocapture` prints the `tracing` events of a test. Without
//! the variable the kit installs no subscriber.
//!
//! # Speed
//!
//! The migrations run once, into a template database whose name is a digest of them. Each test gets a copy of it, in less than
//! 100 ms. Changed migrations make another template.
//!
//! # What is left behind
//!
//! On the kit's own server: nothing, even if tests are killed by `SIGKILL`.
//!
//! On the server of `DATABASE_URL`: the template, for the next run; it is dropped after a day without use. Later tests drop the
//! databases of killed tests.
//!
//! By a [`Cluster`]: no process and no folder, but the data folder that `initdb` made, as one file in the folder for temporary
//! files, for the next cluster; it is removed after a day without use.
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `script` | no | the module `script`: a PostgreSQL that has no database, on the messages of `pgwire` |

mod address;
mod admin;
mod cluster;
mod create;
mod db;
mod deadline;
mod error;
mod given;
mod guard;
mod migrations;
mod pgbouncer;
mod polls;
mod proxy;
mod run;
#[cfg(feature = "script")]
pub mod script;
mod server;
mod sessions;
mod stop;
mod sweep;
mod template;
mod until;

pub use cluster::{Cluster, ClusterBuilder, Lag, Member};
pub use db::TestDb;
/// Turns an `async fn(db: TestDb)` into a test, with a runtime of two workers and a database of its own.
///
/// The function returns `()` or a `Result` whose error is `Debug`. The database is dropped when the test ends, also after a
/// panic. `migrations = "…"` names a folder relative to the `Cargo.toml` of the package; without it the database is empty.
///
/// ```
/// #[db_testkit::test(migrations = "tests/migrations")]
/// async fn the_table_is_there(db: db_testkit::TestDb) -> Result<(), sqlx::Error> {
///     sqlx::query("select id from builds").execute(&db.pool()).await?;
///     Ok(())
/// }
/// ```
///
/// Other functions and arguments are refused:
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
