//! What to open, and how.

use std::sync::Arc;

use db_core::encryption::{Columns, KeySources, RootKey};
use db_core::{Config, ConnectRetry, PoolOptions};
use db_events::{EventOptions, LogTopics};
use db_migrate::Migrations;
use db_migrate::rekey::AtOpen;
use db_notify::BusOptions;
use derive_setters::Setters;

use crate::startup::Told;
use crate::{KeyOptions, MonitorOptions, Startup};

/// What to open, and how.
#[derive(Debug, Setters)]
#[non_exhaustive]
pub struct Options {
    /// Where the database is.
    pub database: Config,
    /// The address past a connection pooler such as `PgBouncer`, for what needs a session of its own: migrations and the bus.
    /// `None`, the default, means [`Self::database`].
    pub direct: Option<Config>,
    /// How many instances of the service run at once (default 1). Opening fails when the pools of all instances together exceed
    /// what the server has for ordinary roles. 0 turns the check off, and so does a [direct](Self::direct) address, since
    /// behind a pooler the pooler's limit counts.
    pub instances: u32,
    /// Whether to connect at the first use only (default false). See [`Options::lazy`].
    #[setters(skip)]
    pub lazy: bool,
    /// How long to wait for the server (default 30 s), for all steps of opening together. A migration that runs at that moment
    /// is not interrupted.
    pub wait: ConnectRetry,
    /// The migrations to apply; none by default.
    #[setters(skip)]
    pub migrations: Option<Migrations>,
    /// The pool for web requests (default 10 connections).
    pub api: PoolOptions,
    /// The pool for background work (default 50 connections).
    pub backend: PoolOptions,
    /// Further pools; [`Db::pool`](crate::Db::pool) finds them by their names.
    pub named: Vec<PoolOptions>,
    /// The bus.
    pub bus: BusOptions,
    /// The topics on which new events of the logs are announced.
    pub topics: LogTopics,
    /// How event logs share the pool for background work between appends and streams that catch up.
    pub events: EventOptions,
    /// Where the keys come from that columns are sealed under; none by default.
    #[setters(skip)]
    pub keys: Option<KeySources>,
    /// A key service that wraps data keys, which are on record; none by default.
    #[setters(skip)]
    pub root_key: Option<Arc<dyn RootKey>>,
    /// How this process holds the keys.
    pub holding: KeyOptions,
    /// What to do with values of the declared columns that are not sealed under the primary key (default: re-key them in the background).
    /// Opening [lazily](Self::lazy) does nothing with them.
    pub rekey: AtOpen,
    /// What is watched: alerts, figures in the log, and counts of statements.
    pub monitor: MonitorOptions,
    /// The sealed columns; none by default. Opening gives them the keys, and compares them with the database after the migrations.
    pub columns: Columns,
    /// Where Redis is; none by default. It is connected to at its first use, and opening does not wait for it.
    #[cfg(feature = "redis")]
    #[setters(skip)]
    pub redis: Option<crate::redis::RedisConfig>,
    #[setters(skip)]
    pub(crate) told: Told,
}

impl Options {
    /// The default options for a database.
    #[must_use]
    pub fn new(database: Config) -> Self {
        Self {
            database,
            direct: None,
            instances: 1,
            lazy: false,
            wait: ConnectRetry::default(),
            migrations: None,
            api: PoolOptions::api(),
            backend: PoolOptions::backend(),
            named: Vec::new(),
            bus: BusOptions::default(),
            topics: LogTopics::default(),
            events: EventOptions::default(),
            keys: None,
            root_key: None,
            holding: KeyOptions::default(),
            rekey: AtOpen::default(),
            monitor: MonitorOptions::default(),
            columns: Columns::default(),
            #[cfg(feature = "redis")]
            redis: None,
            told: Told::default(),
        }
    }

    /// Migrates while opening.
    #[must_use]
    pub fn migrations(mut self, migrations: Migrations) -> Self {
        self.migrations = Some(migrations);
        self
    }

    /// Opens without connecting: [`open`](crate::open) returns at once, and each part connects at its first use. A pool, `min_idle`
    /// included, connects at the first request for a connection, the bus at the first subscription or notification. A
    /// subscriber from before LISTEN is in force receives a [`Gap`](db_notify::Gap) once it is. A [health](crate::Db::health) check
    /// counts as a use.
    ///
    /// Errors that `open` would return come from the first use instead: a server that cannot be reached, a wrong password.
    /// Nobody checks whether the pools fit into the server, nor whether declared columns fit the tables. Migrations cannot be lazy, so [`open`](crate::open) refuses them: run
    /// [`Migrations::up`] beforehand.
    #[must_use]
    pub fn lazy(mut self) -> Self {
        self.lazy = true;
        self
    }

    /// How far [`open`](crate::open) with these options is: for a probe that is asked before there is a [`Db`](crate::Db).
    #[must_use]
    pub fn startup(&self) -> Startup {
        self.told.startup()
    }

    /// Adds a pool for another kind of work, such as `PoolOptions::named("gc").max(2)`. It replaces a pool of the same name.
    #[must_use]
    pub fn pool(mut self, pool: PoolOptions) -> Self {
        self.named.retain(|other| other.name != pool.name);
        self.named.push(pool);
        self
    }

    /// Seals columns under these keys: a `Key`, a `Keyring`, or the sources of keys, which are read again while the program runs.
    #[must_use]
    pub fn keys(mut self, keys: impl Into<KeySources>) -> Self {
        self.keys = Some(keys.into());
        self
    }

    /// Seals columns under data keys that are on record, and that this key service wraps. Keys of [`keys`](Self::keys) only unseal then,
    /// if they are on record.
    #[must_use]
    pub fn root_key(mut self, root: Arc<dyn RootKey>) -> Self {
        self.root_key = Some(root);
        self
    }

    /// Has a connection to Redis beside the database, for [`Db::redis`](crate::Db::redis).
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis(mut self, redis: crate::redis::RedisConfig) -> Self {
        self.redis = Some(redis);
        self
    }

    /// Restricts the bus to a namespace: it hears only processes that use the same one.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.bus.namespace = namespace.into();
        self
    }
}
