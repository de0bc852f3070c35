//! The heart of the layer: how a service reaches PostgreSQL, and gives connections back unharmed.
//!
//! * [`Config`] is where the database is, checked once, with its password out of sight.
//! * [`connect`] waits for a server that is not there yet and fails at once on what waiting cannot mend.
//! * [`Pool`] hands out [`Conn`]s and [`Tx`]s. [`Pool::handle`] is a cheap [`Handle`] that remembers the line it was
//!   made on; handles, `&mut Conn` and `&mut Tx` are sqlx executors, so `query!(…).fetch_one(db.api())` just works.
//! * [`Error`] says what was tried and what is known, and answers questions instead of being matched as text.
//! * [`encryption`] seals values for columns, bound to the place where they are stored.
//!
//! ```no_run
//! # async fn run() -> Result<(), db_core::Error> {
//! use db_core::{Config, Pool, PoolOptions};
//!
//! let config = Config::from_url("postgres://app@localhost/shop")?;
//! let api = Pool::new(&config, PoolOptions::api());
//!
//! let orders: i64 = api
//!     .handle()
//!     .tx(async |tx| {
//!         sqlx::query("insert into orders (item) values ($1)").bind("tea").execute(&mut *tx).await?;
//!         Ok::<_, db_core::Error>(sqlx::query_scalar("select count(*) from orders").fetch_one(&mut *tx).await?)
//!     })
//!     .await?;
//! # drop(orders);
//! # Ok(())
//! # }
//! ```
//!
//! # What a connection goes through
//!
//! A [`Conn`] knows whether a statement was cut off on it, whether a transaction is open, and whether a statement went
//! through that changes the session: raw text, or one that begins with `BEGIN`, `SET`, `LISTEN` and the like. Given back
//! clean, it goes to its pool. Given back in any other state, it is closed, and another takes its place: the next user
//! never meets a half-read result, somebody else's transaction or somebody else's settings, whatever await point the
//! previous future was dropped at. Not seen is what a function does inside a query, such as `set_config(…, false)` or
//! `pg_advisory_lock`. A statement that was cut off runs on at the server until it notices.

mod class;
mod companions;
mod config;
mod conn;
pub mod connect;
mod deadline;
pub mod encryption;
mod error;
mod handle;
mod log;
mod pool;
mod retry;
mod statement;
mod text;
mod tracker;
mod tx;

pub use class::Class;
pub use config::{Config, ConfigError};
pub use conn::Conn;
pub use connect::{ConnectError, ConnectFailure, Retry};
pub use deadline::DeadlineError;
pub use error::{AcquireError, AcquirePhase, Error, StatementError};
pub use handle::Handle;
pub use pool::{Closed, Limits, Pool, PoolOptions, Reset, Stats, Totals};
pub use retry::{Classify, RetryPolicy};
pub use tracker::{Holder, Tracking};
pub use tx::{Attempt, Isolation, Savepoint, Tx, TxOptions};
