//! The front door: [`open`] a database once, and get pools, bus, event logs and keys in one handle that is cheap to clone.
//!
//! ```
//! # db_testkit::run(async |test| {
//! # std::env::set_current_dir("../..")?;
//! use db_layer::{Migrations, Settings};
//!
//! let settings = Settings::from_environment();
//! # let settings = db_layer::Settings::default().set("database-url", test.url());
//! let options = settings.options()?;
//! let migrations = Migrations::from_dir("migrations").await?;
//! let db = db_layer::open(options.migrations(migrations)).await?;
//!
//! let one: i32 = sqlx::query_scalar("select 1").fetch_one(db.api()).await?;
//! assert_eq!(one, 1);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! | ask [`Db`] for | and get |
//! |---|---|
//! | [`api`](Db::api), [`backend`](Db::backend) | a handle of the pool for web requests, or for background work |
//! | [`bus`](Db::bus) | LISTEN and NOTIFY on one connection |
//! | [`events`](Db::events) | durable, resumable event logs |
//! | [`keys`](Db::keys) | the keys that columns are sealed under |
//! | [`health`](Db::health) | the state of all of it |
//! | [`alerts`](Db::alerts), [`statement_counts`](Db::statement_counts), [`slow_queries`](Db::slow_queries) | what somebody has to look at, and what ran |
//! | [`shutdown_on_signal`](Db::shutdown_on_signal) | the service's end at SIGTERM or SIGINT, in order, each phase with a deadline |
//! | [`shutdown`](Db::shutdown) | the same without a service and signals, with one deadline |
//!
//! This crate knows nothing of HTTP; `db-axum` does.
//!
//! # The crates below
//!
//! Each crate below is a module here, with its whole public API: [`db_core`], [`db_notify`], [`db_events`] and [`db_migrate`].
//! A service needs only this crate in its `Cargo.toml`: `db_layer::db_notify::Delivery`. The types that most services name are
//! also beside [`open`].
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `clap` | no | [`Settings`] is `clap::Args`, for `#[command(flatten)]` |
//! | `metrics` | no | `metrics`: `db.measure()` and `db.gauges()`, by the `metrics` facade |
//! | `redis` | no | [`redis`]: `db.redis()`, one connection for all, with health and an end |
//! | `sea-orm` | no | `db.api().orm()` and `tx.orm()`: `SeaORM` on handles, connections and transactions (`db_core::orm`) |

pub mod alerts;
mod db;
#[cfg(unix)]
mod ending;
mod figures;
mod health;
mod holding;
mod mean;
#[cfg(feature = "metrics")]
pub mod metrics;
mod monitor;
mod open;
mod options;
mod pulse;
mod readiness;
pub mod redis;
mod settings;
mod shutdown;
#[cfg(unix)]
mod signals;
mod sizing;
mod slow;
mod startup;
mod statements;
mod stripes;

pub use db::Db;
#[cfg(unix)]
pub use ending::Ended;
pub use health::{DatabaseHealth, Health};
pub use holding::{KeyOptions, SealingHealth};
pub use monitor::MonitorOptions;
pub use open::{OpenError, open};
pub use options::Options;
pub use readiness::NotReady;
pub use settings::Settings;
pub use shutdown::{Deadlines, Shutdown};
#[cfg(unix)]
pub use signals::{Signal, Signals};
pub use sizing::ConnectionBudgetExceeded;
pub use slow::{NoServerCount, SlowQueries, SlowQuery, SlowSource};
pub use startup::{Startup, StartupPhase};
pub use statements::{StatementCount, StatementCounts};

pub use db_core::settings::{Setting, SettingSource, SettingsError};
pub use db_core::{
    self, Config, ConfigError, Conn, ConnectRetry, Error, Handle, Isolation, Pool, PoolOptions, Pooler,
    Session, Tx, TxOptions, TxRetry, encryption,
};
pub use db_events::{
    self, Appender, Event, EventLogs, EventOptions, EventStream, Events, LogId, LogTopics, Mark, NewEvent,
    WriterId,
};
pub use db_migrate::rekey::AtOpen;
pub use db_migrate::{self, Migrations, Summary};
pub use db_notify::{self, Bus, BusExt, BusOptions, Channel, NotifyAfterCommit, Topic, WatchedTopics};
