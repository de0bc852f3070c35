//! Redis beside the database, for what may be lost: counts of rate limits, a cache.
//!
//! With the feature `redis`, `Options::redis` or `--redis-url` says where it is, and `db.redis()` gives
//! a connection that all users share. It is made at the first use, and made anew when it is lost. Redis is not needed to open the database, nor to
//! be [ready](crate::NotReady): a user must do without it while it is away, which `Redis::within` helps with. An
//! [alert](crate::alerts) tells that it is.
//!
//! ```
//! # #[cfg(feature = "redis")]
//! # db_testkit::run(async |test| {
//! # let config = db_layer::Config::from_url(&test.url())?;
//! # let server = db_testkit::Redis::start().await?;
//! # let url = server.url();
//! use std::time::Duration;
//!
//! use db_layer::redis::{RedisConfig, client::AsyncCommands};
//!
//! let redis = RedisConfig::from_url(&url)?;
//! let db = db_layer::open(db_layer::Options::new(config).redis(redis)).await?;
//!
//! let redis = db.redis().expect("it was given");
//! let visits: Option<i64> =
//!     redis.within(Duration::from_millis(50), |mut redis| async move { redis.incr("visits", 1).await }).await.ok();
//! assert_eq!(visits, Some(1));
//! # db.shutdown(Duration::from_secs(5)).await;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! `client` is the crate `redis`, in the version that is used here.

#[cfg(feature = "redis")]
mod breaker;
#[cfg(feature = "redis")]
mod config;
mod figures;
#[cfg(feature = "redis")]
mod handle;
#[cfg(feature = "redis")]
mod link;

#[cfg(feature = "redis")]
pub use ::redis as client;

#[cfg(feature = "redis")]
pub use self::config::{RedisConfig, RedisConfigError};
pub use self::figures::{RedisFigures, RedisHealth};
#[cfg(feature = "redis")]
pub use self::handle::{Redis, WithoutRedis};
