//! Connections to PostgreSQL for a service: configuration, pools, transactions, errors, encryption.
//!
//! * [`Config`] is a validated database address. No output shows its password.
//! * [`connect`] waits for a server that is not up yet and fails at once on errors that waiting cannot fix.
//! * [`Pool`] hands out [`Conn`]s and [`Tx`]s. [`Pool::handle`] returns a cheap [`Handle`] that remembers its call site.
//!   Handles, `&mut Conn` and `&mut Tx` are sqlx executors, so `query!(…).fetch_one(db.api())` works.
//! * [`Session`] is the trait for functions that run on a [`Conn`], a [`Tx`] or a [`Savepoint`].
//! * [`Handle::tx`] runs a closure in a transaction and commits or rolls back when the closure returns. [`Handle::tx_retry`]
//!   repeats the transaction where that is safe. [`TxOptions`] sets isolation, access mode and timeout.
//! * [`Pool::holders`] lists the current checkouts. An [`AcquireError`] explains why no connection was available.
//! * [`Error`] says what was attempted and what is known. Its methods replace matching on message text: [`Class`] is the kind
//!   of error, [`Repeat`] says whether the work may be tried again.
//! * [`encryption`] seals column values and binds them to the row and column where they are stored.
//!
//! ```
//! # db_testkit::run(async |db| {
//! # sqlx::query("create table orders (item text)").execute(&db.pool()).await?;
//! # let address = db.url();
//! use db_core::{Config, Pool, PoolOptions};
//!
//! // postgres://app@localhost/shop
//! let config = Config::from_url(&address)?;
//! let api = Pool::new(&config, PoolOptions::api());
//!
//! let orders: i64 = api
//!     .handle()
//!     .tx(async |tx| {
//!         sqlx::query("insert into orders (item) values ($1)").bind("tea").execute(&mut *tx).await?;
//!         Ok::<_, db_core::Error>(sqlx::query_scalar("select count(*) from orders").fetch_one(&mut *tx).await?)
//!     })
//!     .await?;
//! assert_eq!(orders, 1);
//! # Ok::<_, db_core::Error>(())
//! # }).unwrap();
//! ```
//!
//! # Life cycle of a connection
//!
//! ```text
//!             ┌──────────────── clean: no round trip ──────────────┐
//!             ▼                                                    │
//!  dial ──▶ idle stack ──▶ fit? ──▶ checked out: Conn or Tx ──▶ returned ──▶ longest-waiting caller
//!             ▲             │ no                                   │
//!             │             ▼                                      ├── unknown state ──▶ repair ──▶ idle, or closed
//!             └─ pinged ◀───┴─ one link lost: all others ◀─────────┴── link lost: dropped
//! ```
//!
//! A [`Conn`] tracks three things: whether a statement was abandoned (its future was dropped before its whole answer was
//! read), whether a transaction is open, and whether a statement may have changed the session. Such statements are raw text, `BEGIN`, `SET`, `LISTEN` and the like, statements that
//! create temporary objects, `DO`, `CALL`, `EXPLAIN`, and calls of `set_config` and `pg_advisory_lock`. A connection that is
//! returned clean is ready for the next caller at once. Any other connection is first repaired, in the background and within
//! 2 s: a running statement is cancelled on the server, an open transaction is rolled back, a changed session is reset. The
//! next caller never sees a half-read result, another caller's transaction or another caller's settings, at whatever await
//! point the previous future was dropped. Statements are classified by their text, read by the rules of PostgreSQL's scanner.
//! The effects of your own functions are not seen, for example of a function that calls `set_config`: use
//! [`Reset::DiscardAll`] with such code.
//!
//! Every wait has a limit: for a connection ([`PoolOptions::acquire_timeout`]), for the server's answer
//! ([`PoolOptions::statement_timeout`]), for the end of a transaction ([`PoolOptions::tx_timeout`]), for a ping (0.3 s), for
//! dialling (3 s), for a repair (2 s), for a graceful close (1 s), and for closing the pool ([`Pool::close`]).
//!
//! # Observers
//!
//! An [`Observer`] hears what happens in a pool: how long each caller waited and for what, each statement, each connection that was dialled,
//! given back or closed and why, leaks, retries, repairs and cancels. What only needs to be counted is in [`Totals`] as well. `db-layer` makes
//! metrics of both.
//!
//! # Events
//!
//! | target | level | what |
//! |---|---|---|
//! | `db_core::statement` | `debug`, slow ones `warn` | each statement without its literals, its duration, rows and call site |
//! | `db_core::pool` | `warn` | dialling fails; a connection is held for too long; a task waits for a second connection; abandoned statements cannot be cancelled; closing the pool aborted work |
//! | `db_core::conn` | `info` | a connection that was reported as held for too long was returned |
//! | `db_core::retry`, `db_core::handle` | `info` | a transaction or a statement is repeated |
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `clap` | no | `settings` as command-line flags |
//! | `sea-orm` | no | `orm`: `SeaORM` on handles, connections and transactions of this crate; `Pool::sea_orm` |

mod backoff;
mod call_site;
mod cancels;
mod class;
mod config;
mod conn;
pub mod connect;
mod deadline;
pub mod encryption;
mod error;
mod error_type;
mod extensions;
mod handle;
mod hooks;
mod keepalive;
mod lent;
mod observer;
mod observers;
#[cfg(feature = "sea-orm")]
pub mod orm;
mod pool;
mod pool_options;
mod pooler;
mod redact;
mod retry;
mod retry_budget;
mod role;
mod schema;
mod session;
pub mod settings;
pub mod sql;
mod sqlx_depth;
mod statement;
mod statement_end;
mod stats;
mod status_query;
mod tracker;
mod tx;

#[doc(hidden)]
pub use backoff::Backoff;
pub use call_site::CallSite;
pub use class::{Class, Repeat};
pub use config::{Config, ConfigError};
pub use conn::Conn;
pub use connect::{ConnectError, ConnectFailure, ConnectRetry};
pub use deadline::DeadlineError;
pub use error::{AcquireError, AcquirePhase, Error, StatementError};
pub use error_type::ErrorType;
pub use handle::Handle;
pub use keepalive::with_keepalive;
pub use lent::LentError;
pub use observer::{Acquired, Observer, Released, Repaired, Retried, StatementDone};
#[doc(hidden)]
pub use observers::Observers;
pub use pool::{Closed, Pool, WarmUpError};
pub use pool_options::{Limits, PoolOptions, Reset, Tracking};
pub use pooler::{Pooler, PoolerError};
pub use retry::{Classify, TxRetry};
pub use retry_budget::RetryBudget;
pub use schema::Schema;
pub use session::{CopyIn, Session};
pub use stats::{CloseReason, Closings, Stats, Totals};
pub use tracker::Holder;
pub use tx::{Isolation, Savepoint, Tx, TxOptions};
