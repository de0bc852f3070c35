//! The heart of the layer: how a service reaches PostgreSQL, and gives connections back unharmed.
//!
//! * [`Config`] is where the database is, checked once, with its password out of sight.
//! * [`connect`] waits for a server that is not there yet and fails at once on what waiting cannot mend.
//! * [`Pool`] hands out [`Conn`]s and [`Tx`]s. [`Pool::handle`] is a cheap [`Handle`] that remembers the line it was
//!   made on; handles, `&mut Conn` and `&mut Tx` are sqlx executors, so `query!(…).fetch_one(db.api())` just works.
//! * [`Session`] is what a function takes that runs on a [`Conn`], in a [`Tx`] or in a part of one.
//! * [`Handle::tx`] runs a transaction that cannot forget its end, [`Handle::tx_retry`] one that is repeated where that is
//!   safe; [`TxOptions`] says of which kind.
//! * [`Pool::holders`] says who holds what, and an [`AcquireError`] why there was nothing left.
//! * [`Error`] says what was tried and what is known, and answers questions instead of being matched as text: what kind it is
//!   ([`Class`]), and whether the work may be tried again ([`Repeat`]).
//! * [`encryption`] seals values for columns, bound to the place where they are stored.
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
//! # What a connection goes through
//!
//! ```text
//!             ┌────────────── clean: no round trip ─────────────┐
//!             ▼                                                 │
//!  dial ──▶ idle stack ──▶ fit? ──▶ on loan: Conn or Tx ──▶ given back ──▶ who waits longest
//!             ▲             │ no                                │
//!             │             ▼                                   ├── state not known ──▶ repair ──▶ idle, or closed
//!             └── verified ◀┴─ one link lost: all others ◀──────┴── link lost: dropped
//! ```
//!
//! A [`Conn`] knows whether a statement was cut off on it, whether a transaction is open, and whether a statement went
//! through that may change the session: raw text, `BEGIN`, `SET`, `LISTEN` and the like, what is created as temporary, `DO`,
//! `CALL`, `EXPLAIN`, calls of `set_config` and of `pg_advisory_lock`. Given back
//! clean, it is ready for the next user at once. In any other state it is first repaired, in the background and within 2 s:
//! what runs is cancelled on the server, what is open is rolled back, what was changed is reset. The next user never meets a
//! half-read result, somebody else's transaction or somebody else's settings, whatever await point the previous future was
//! dropped at. A statement is judged by its text, read by the rules of PostgreSQL's scanner. Not seen is what a function of
//! your own does, such as one that calls `set_config` for you: [`Reset::DiscardAll`] is for code that does such things.
//!
//! Every wait has a limit: for a connection ([`PoolOptions::acquire_timeout`]), for the server's answer
//! ([`PoolOptions::statement_timeout`]), for the end of a transaction ([`PoolOptions::tx_timeout`]), for signs of life (0.3 s),
//! for dialling (3 s), repair (2 s), a goodbye (1 s), and for closing the pool ([`Pool::close`]).
//!
//! # Events
//!
//! | target | level | what |
//! |---|---|---|
//! | `db_core::statement` | `debug`, slow ones `warn` | each statement without its literals, how long it took, rows, the line that asked for the connection |
//! | `db_core::pool` | `warn` | no connection could be made; one is held for too long; a task waits for a second one; statements that were cut off cannot be cancelled; what closing cut off |
//! | `db_core::conn` | `info` | a connection that was held for too long came back after all |
//! | `db_core::retry`, `db_core::handle` | `info` | something is done again |
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `clap` | no | `settings` as flags of the command line |

mod backoff;
mod class;
mod companions;
mod config;
mod conn;
pub mod connect;
mod deadline;
mod doubt;
pub mod encryption;
mod error;
mod handle;
mod keepalive;
mod lent;
mod log;
mod pool;
mod pooler;
mod question;
mod retry;
mod retry_budget;
mod role;
mod session;
pub mod settings;
mod sql;
mod stale;
mod statement;
mod text;
mod tracker;
mod tx;

#[doc(hidden)]
pub use backoff::Backoff;
pub use class::{Class, Repeat};
pub use config::{Config, ConfigError};
pub use conn::Conn;
pub use connect::{ConnectError, ConnectFailure, ConnectRetry};
pub use deadline::DeadlineError;
pub use error::{AcquireError, AcquirePhase, Error, StatementError};
pub use handle::Handle;
pub use keepalive::with_keepalive;
pub use lent::LentError;
pub use pool::{Closed, Limits, Pool, PoolOptions, Reset, Stats, Totals, WarmUpError};
pub use pooler::{Pooler, PoolerError};
pub use retry::{Classify, TxRetry};
pub use retry_budget::RetryBudget;
pub use session::{CopyIn, Session};
pub use tracker::{CallSite, Holder, Tracking};
pub use tx::{Isolation, Savepoint, Tx, TxOptions};
