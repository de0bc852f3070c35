//! A PostgreSQL database per test, for anyone on sqlx.
//!
#![doc = concat!("```\n", include_str!("../tests/examples/plain.rs"), "```")]
//!
//! The database is empty, exists for this test only, and is dropped when the test ends. [`test`](macro@test) has the arguments:
//! migrations, fixtures, a server of the test's own, several databases, and those of `#[tokio::test]`. Tests that need more
//! control call [`TestDb::create`] and [`TestDb::empty`] themselves.
//!
//! Any library that takes an address or a pool of sqlx works in the same way. This is SeaORM:
//!
#![doc = concat!("```ignore\n", include_str!("../tests/examples/sea_orm.rs"), "```")]
//!
//! # What a test leaves
//!
//! After the test's body, when everything that the body owned is dropped and the tasks that it spawned still run, the attribute
//! looks at the server. An open transaction, a running statement or a lock in the test's databases that is still there after 1 s
//! fails the test. The message has the process id, the application name, the state and the statement of each session, and its
//! locks:
//!
//! ```text
//! the test left something on the server:
//!   session 4711 "my-service", idle in transaction, in a transaction for 1.0s, waits for Client: ClientRead: insert into …
//!   session 4711 holds RowExclusiveLock on the relation word
//! ```
//!
//! The server tells no more: not the line of the test, and not what another session listens to. Give your pools an
//! `application_name`, to see which of them left something.
//!
//! - `leaves = "…"` allows what it names: a session whose statement or application name contains the text. Several texts stand
//!   in brackets: `leaves = ["pg_sleep", "my-worker"]`.
//! - `strict` also fails the test for a session that stays connected, such as that of a pool which a task keeps.
//! - The pool of [`TestDb::pool`] is looked at as any other, since tests use it as their only pool: a transaction that was
//!   forgotten there, or that a task holds, fails the test. Its idle connections are the kit's and never fail a test.
//! - A test that fails by itself keeps its own failure. What it left is printed.
//! - A look at a test that left nothing is one query, in a session that the kit has anyway.
//!
//! # Faults
//!
//! To test how code handles a failing database:
//!
//! - [`Proxy`], a network between the code and its server that delays, resets, freezes, swallows and forgets connections, loses
//!   the answer to a `COMMIT`, and can lead to another server after a failover;
//! - [`TestServer::stop`] and [`TestServer::kill_backend`], for a server of the test's own;
//! - [`poll_then_drop`], which cancels a future at each point where it waits;
//! - [`TestDb::sessions`], [`TestDb::open_transactions`] and [`TestDb::locks`], which show what is on the server while the test
//!   runs, and [`TestDb::until_sessions`], [`TestDb::until_quiet`] and [`until`], which wait for an expected state.
//!
//! Each of the following examples fails when its code under test is wrong in the way that its comment says.
//!
//! ## A lost answer
//!
//! The server has committed, and the answer does not arrive. Code that tries again does the work twice; code that does not may
//! report a failure that was none.
//!
#![doc = concat!("```\n", include_str!("../tests/examples/lost_answer.rs"), "```")]
//!
//! ## A request that is dropped
//!
//! Web frameworks drop the future of a request whose client has gone, at whichever `await` that is.
//!
#![doc = concat!("```\n", include_str!("../tests/examples/cancelled.rs"), "```")]
//!
//! ## A server that stops
//!
//! [`Stop`] has the ways in which a server ends. With `server = "throwaway"` no other test is on it. The server comes back by
//! itself within a second or two, at the same address and with its data.
//!
#![doc = concat!("```\n", include_str!("../tests/examples/stopped.rs"), "```")]
//!
//! ## Through a pooler
//!
//! [`PgBouncer`] starts one in front of a test's database, in transaction mode by default, with production's configuration file
//! if that is [included](PgBouncerBuilder::include). It can be killed and restarted. Its program must be on the machine, or be
//! named by `DB_TESTKIT_PGBOUNCER`.
//!
#![doc = concat!("```\n", include_str!("../tests/examples/pooled.rs"), "```")]
//!
//! ## Redis
//!
//! [`Redis`] starts one of a test's own, which can be killed, frozen, and restarted with nothing in it. Its program must be on the machine, or
//! be named by `DB_TESTKIT_REDIS`.
//!
//! # Without a database
//!
//! With the feature `script`, a `Script` is a PostgreSQL that has no database: rules say what it answers to which statement, with
//! typed rows, an error with all its fields, a notice, a delay, silence, half a message or a closed connection. The driver and the
//! pool are real. It is there in a millisecond or two, and answers what no server can be made to answer on demand: a serialization
//! failure at the second try, or a `COMMIT` whose answer is lost. Rules can be recorded from a real run.
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
//! nextest`, which runs each test in a process of its own; the end of the last one stops the server and removes its folder.
//!
//! # What a test logs
//!
//! `DB_TESTKIT_LOG=my_service=debug,db_core=info cargo test NAME -- --nocapture` prints the `tracing` events of a test. Without
//! the variable the kit installs no subscriber.
//!
//! # Speed
//!
//! The migrations run once, into a template database whose name is a digest of them. Each test gets a copy of it. Changed migrations
//! make another template. Fixtures run in each copy.
//!
//! A copy has hundreds of files, so its time depends on the file system: some 20 ms in memory, and up to 400 ms on a disk. The
//! kit's own server is in memory: on Linux in `/dev/shm`, if that has 2 GB left and `TMPDIR` is not set.
//!
//! # What is left behind
//!
//! By the kit itself, on its own server: nothing, even if tests are killed by `SIGKILL`.
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
mod database;
mod db;
mod deadline;
mod error;
mod fixtures;
mod given;
mod guard;
mod leftovers;
mod migrations;
mod pgbouncer;
mod polls;
mod proxy;
mod redis;
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
/// Turns an `async fn(db: TestDb)` into a test, with a runtime and a database of its own, and fails the test for what it
/// [leaves on the server](crate#what-a-test-leaves).
///
/// The function returns `()` or a `Result` whose error is `Debug`. The database is dropped when the test has ended, also after a
/// panic. A function with several parameters, such as `async fn(a: TestDb, b: TestDb)`, gets a database for each.
///
/// | argument | meaning | without it |
/// |---|---|---|
/// | `migrations = "…"` | a folder of migrations in sqlx's form | the database is empty |
/// | `fixtures = "…"`, `fixtures = ["…", "…"]` | SQL files that run after the migrations, in this order, in each database: see [`TestDb::load_fixture`] | none |
/// | `server = "throwaway"` | the test has a server of its own, which [`TestDb::test_server`] stops | the tests share a server |
/// | `leaves = "…"`, `leaves = ["…", "…"]` | what may be left: a part of the statement or of the application name of its session | nothing |
/// | `strict` | sessions must not stay connected | idle sessions may |
/// | `flavor = "current_thread"`, `flavor = "multi_thread"` | the runtime, as in `#[tokio::test]` | `multi_thread` |
/// | `worker_threads = 4` | threads of a `multi_thread` runtime | 2 |
/// | `start_paused = true` | the clock of a `current_thread` runtime is paused when the body begins. Needs tokio's feature `test-util` in the test's package. A paused clock jumps to the next timer while a test waits for the server, so pools report timeouts: use connections, such as those of [`TestDb::options`] | the clock runs |
///
/// Paths are relative to the `Cargo.toml` of the test's package.
///
/// ```
/// #[db_testkit::test(migrations = "tests/migrations", leaves = "pg_sleep")]
/// async fn the_table_is_there(db: db_testkit::TestDb) -> Result<(), sqlx::Error> {
///     sqlx::query("select id from builds").execute(&db.pool()).await?;
///     Ok(())
/// }
/// ```
///
/// Other functions and arguments are refused, and the message names what there is:
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
///
/// ```compile_fail
/// #[db_testkit::test(start_paused = true)]
/// async fn the_flavor_is_missing(db: db_testkit::TestDb) {}
/// ```
pub use db_testkit_macros::test;
pub use error::Error;
pub use migrations::Migrations;
pub use pgbouncer::{PgBouncer, PgBouncerBuilder};
pub use polls::poll_then_drop;
pub use proxy::Proxy;
pub use redis::Redis;
pub use run::run;
pub use server::TestServer;
pub use sessions::{Lock, Session};
pub use stop::Stop;
pub use until::until;

/// For the macro's expansion only.
#[doc(hidden)]
pub mod __private {
    pub use crate::run::{Outcome, Plan, run_test};
}
