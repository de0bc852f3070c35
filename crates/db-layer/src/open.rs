//! Opening: wait for the server, migrate, make the pools, start the bus.

use std::sync::Arc;
use std::time::Duration;

use db_core::encryption::Keyring;
use db_core::{Class, Config, ConnectRetry, Pool, PoolOptions, Pooler, RetryBudget, connect};
use db_events::{EventLogs, EventOptions, LogTopics};
use db_migrate::Migrations;
use db_notify::{Bus, BusOptions};
use derive_setters::Setters;
use futures_util::TryFutureExt;
use futures_util::future::try_join_all;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use crate::db::Pools;
use crate::{ConnectionBudgetExceeded, Db, sizing};

/// How long the server may take to say how many connections it has.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// A goodbye takes no longer than this.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What to open, and how.
#[derive(Debug, Setters)]
#[non_exhaustive]
pub struct Options {
    /// Where the database is.
    pub database: Config,
    /// Where it is past a connection pooler such as `PgBouncer`, for what needs a session of its own: migrations, and the
    /// bus. `None`, the default, is the same address.
    pub direct: Option<Config>,
    /// How many instances of the service there are, 1 by default. Opening fails when the pools of all of them do not fit into
    /// what the server has for ordinary roles. 0 turns the check off, and so does a [direct](Self::direct) address: behind a
    /// pooler it is the pooler that counts.
    pub instances: u32,
    /// Whether to connect to nothing before somebody uses it; off by default. See [`Options::lazy`].
    #[setters(skip)]
    pub lazy: bool,
    /// How long to wait for the server [30 s], for all steps of opening together. A migration that is under way then is not
    /// ended.
    pub wait: ConnectRetry,
    /// What to migrate to; nothing by default.
    #[setters(skip)]
    pub migrations: Option<Migrations>,
    /// The pool for web requests [10 connections].
    pub api: PoolOptions,
    /// The pool for background work [50 connections].
    pub backend: PoolOptions,
    /// Further pools, found again by their names with [`Db::pool`].
    pub named: Vec<PoolOptions>,
    /// The bus.
    pub bus: BusOptions,
    /// The topics by which those who follow event logs are woken.
    pub topics: LogTopics,
    /// How event logs share the pool for background work between appends and those who catch up.
    pub events: EventOptions,
    /// The keys that columns are sealed under; none by default.
    #[setters(skip)]
    pub keyring: Option<Keyring>,
}

impl Options {
    /// The defaults, for a database.
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
            keyring: None,
        }
    }

    /// Migrates while opening.
    #[must_use]
    pub fn migrations(mut self, migrations: Migrations) -> Self {
        self.migrations = Some(migrations);
        self
    }

    /// Opens without connecting to anything: [`open`] returns at once, and each part makes its connections when it is first used,
    /// the pools when somebody asks for a connection, `min_idle` included, the bus when somebody subscribes or notifies. Who
    /// subscribes before LISTEN is in force is told by a [`Gap`](db_notify::Gap) when it is. A [health](Db::health) check is a
    /// use like any other.
    ///
    /// What opening finds out otherwise, the first use does: a server that is not there, a wrong password, pools that are too
    /// large for the server, which nobody then counts. Migrations cannot wait for a first use, so [`open`] refuses them:
    /// run [`Migrations::up`] beforehand.
    #[must_use]
    pub fn lazy(mut self) -> Self {
        self.lazy = true;
        self
    }

    /// Adds a pool for work of another kind, such as `PoolOptions::named("gc").max(2)`. A later one of
    /// the same name replaces it.
    #[must_use]
    pub fn pool(mut self, pool: PoolOptions) -> Self {
        self.named.retain(|other| other.name != pool.name);
        self.named.push(pool);
        self
    }

    /// Seals columns under these keys.
    #[must_use]
    pub fn keyring(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// Hears other processes of this namespace only.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.bus.namespace = namespace.into();
        self
    }
}

/// Why a database could not be opened. Each variant's error says what was tried on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address leads through a pooler, and there is none that leads past it.
    #[error(
        "{0} is reached through a pooler, and the bus and migrations need the server's own address: set `Options::direct`, or \
         DATABASE_URL_DIRECT"
    )]
    NoDirect(String),
    /// The server was not reached.
    #[error(transparent)]
    Connect(#[from] db_core::ConnectError),
    /// The server has no room for all that the pools may open.
    #[error(transparent)]
    ConnectionBudgetExceeded(#[from] ConnectionBudgetExceeded),
    /// The server did not say how many connections it has.
    #[error("the server was asked how many connections it has, and did not answer: {0}")]
    Room(db_core::Error),
    /// Migrations, and nothing to be connected to.
    #[error(
        "migrations are to be run, and nothing is to be connected to before it is used: run them beforehand, or do not open \
         lazily"
    )]
    LazyMigrations,
    /// The migrations did not run.
    #[error(transparent)]
    Migrate(#[from] db_migrate::Error),
    /// A pool did not get the connections that it is to keep ready.
    #[error(transparent)]
    WarmUp(#[from] db_core::WarmUpError),
    /// The bus could not listen.
    #[error(transparent)]
    Bus(#[from] db_notify::OpenError),
}

impl OpenError {
    fn may_mend(&self) -> bool {
        match self {
            Self::Connect(error) => !error.failure().is_final(),
            Self::Room(error) => matches!(error.class(), Class::Lost | Class::NotReached),
            Self::Migrate(error) => error.is_transient(),
            Self::Bus(error) => !error.is_final(),
            // Pools have tried by themselves for as long as they may.
            Self::ConnectionBudgetExceeded(_)
            | Self::NoDirect(_)
            | Self::LazyMigrations
            | Self::WarmUp(_) => false,
        }
    }
}

/// Opens a database: waits for the server, migrates, then makes the pools and starts the bus. When it returns, each pool has as
/// many connections ready as its [`min_idle`](PoolOptions::min_idle) asks for, and the bus listens. What is opened
/// [lazily](Options::lazy) waits for its first use instead.
///
/// A server that goes away on the way is waited for again, and the step that met it is repeated, all within
/// [`Options::wait`]; what waiting cannot mend ends it at once. Each attempt that fails is one line of the log.
///
/// Dropping the future leaves nothing running; migrations that were done stay done.
///
/// # Errors
///
/// [`OpenError`] of the step that failed.
pub async fn open(options: Options) -> Result<Db, OpenError> {
    let config = options.database.clone();
    let limit = |pool| config.apply_to(pool);
    let options = Options {
        api: limit(options.api),
        backend: limit(options.backend),
        named: options.named.into_iter().map(limit).collect(),
        ..options
    };
    let direct = options.direct.clone().unwrap_or_else(|| config.clone());
    if direct.pooler() != Pooler::None {
        return Err(OpenError::NoDirect(direct.to_string()));
    }

    let mut steps = Steps(RetryBudget::new(options.wait));
    if options.lazy {
        if options.migrations.is_some() {
            return Err(OpenError::LazyMigrations);
        }
    } else {
        let first = steps.survive(&config, "reach the server", |left| reach(&config, left, &options)).await?;
        // Boxed, as the other steps are: the future of opening would be as large as all of them.
        match &options.migrations {
            // Another session would cost as much as all that is asked on this one.
            Some(migrations) if options.direct.is_none() => {
                Box::pin(migrations.up_on(first, &config, steps.left())).await?;
            }
            Some(migrations) => {
                close(first).await;
                Box::pin(migrations.up_within(&direct, steps.left())).await?;
            }
            None => close(first).await,
        }
    }

    let pool = |its| if options.lazy { Pool::lazy(&config, its) } else { Pool::new(&config, its) };
    let (api, backend) = (pool(options.api), pool(options.backend));
    let named: Vec<_> = options.named.into_iter().map(pool).collect();
    let bus = if options.lazy {
        Bus::lazy(&direct, &options.bus)?
    } else {
        let left = steps.left();
        let limit = left.deadline.max(left.attempt);
        let warm = try_join_all([&api, &backend].into_iter().chain(&named).map(|pool| pool.warm_up(limit)));
        let listening = steps.survive(&direct, "listen", |_| listen(&direct, &options.bus));
        // Neither waits for the other.
        let (bus, _) = tokio::try_join!(listening, warm.map_err(OpenError::from))?;
        bus
    };
    if config.pooler() != Pooler::None && !options.lazy {
        tracing::info!(%config, %direct, "a pooler is in between: prepared statements work, and LISTEN delivers past it");
    }
    let keyring = options.keyring.map(Arc::new);
    for pool in [&api, &backend].into_iter().chain(&named) {
        pool.attach(Arc::new(bus.clone()));
        if let Some(keyring) = &keyring {
            pool.attach(Arc::clone(keyring));
        }
    }
    let events = EventLogs::with_options(backend.clone(), &bus, &options.topics, options.events);
    Ok(Db::new(Pools { api, backend, named }, bus, events, keyring))
}

/// The steps of opening, which have one deadline together.
struct Steps(RetryBudget);

impl Steps {
    fn left(&self) -> ConnectRetry {
        self.0.left()
    }

    /// Has an error tell of all attempts to connect, and not of the last few alone.
    fn counted<T>(&mut self, mut done: Result<T, OpenError>) -> Result<T, OpenError> {
        if let Err(OpenError::Connect(error)) = &mut done {
            self.0.count(error);
        }
        done
    }

    /// Tries a step again when it meets a loss that mends itself. The steps before it are done and stay so.
    async fn survive<T, F: Future<Output = Result<T, OpenError>>>(
        &mut self,
        to: &Config,
        step: &str,
        attempt: impl Fn(ConnectRetry) -> F,
    ) -> Result<T, OpenError> {
        self.0.refresh();
        let mut done = self.counted(Box::pin(attempt(self.left())).await);
        while let Err(error) = &done {
            if !error.may_mend() || !self.0.pause(to, step, error).await {
                break;
            }
            match timeout(self.left().deadline, Box::pin(attempt(self.left()))).await {
                Ok(again) => done = self.counted(again),
                // What was met last is what is known.
                Err(_) => break,
            }
        }
        done
    }
}

/// Waits for the server, and asks whether it has room for the pools.
async fn reach(config: &Config, left: ConnectRetry, options: &Options) -> Result<PgConnection, OpenError> {
    let mut first = connect::connect(config, left).await?;
    // Behind a pooler, how many sessions the server sees is the pooler's affair.
    if options.instances > 0 && options.direct.is_none() {
        let answer = timeout(ROOM_LIMIT, sizing::check(&mut first, options)).await;
        answer
            .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
            .map_err(|error| OpenError::Room(error.into()))??;
    }
    Ok(first)
}

async fn close(first: PgConnection) {
    match timeout(CLOSE_LIMIT, first.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the first connection was lost at its end"),
        Err(_) => tracing::debug!("the first connection did not close in time"),
    }
}

async fn listen(direct: &Config, options: &BusOptions) -> Result<Bus, OpenError> {
    Ok(Bus::open(direct, options.clone()).await?)
}
