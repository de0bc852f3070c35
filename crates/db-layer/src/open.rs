//! Opening: wait for the server, migrate, make the pools, start the bus.

use std::sync::Arc;
use std::time::Duration;

use db_core::encryption::{ColumnsError, KeyRecordError, KeySourceError};
use db_core::{Class, Config, ConnectRetry, Pool, Pooler, RetryBudget, connect};
use db_events::EventLogs;
use db_migrate::rekey::RekeyError;
use db_notify::{Bus, BusOptions};
use futures_util::TryFutureExt;
use futures_util::future::try_join_all;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use crate::db::{Parts, Pools};
use crate::holding::{Holder, Holding};
use crate::pulse::{Heart, Pulse};
#[cfg(feature = "redis")]
use crate::redis::Redis;
use crate::startup::StartupPhase;
use crate::{ConnectionBudgetExceeded, Db, Options, sizing};

/// Limit for the server's answer to how many connections it has.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// Limit for closing a connection gracefully.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Why a database could not be opened. Each variant's error says what was tried, and on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address leads through a pooler, and no direct address is given.
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
    /// Migrations were given together with [`Options::lazy`].
    #[error(
        "migrations are to be run, and nothing is to be connected to before it is used: run them beforehand, or do not open \
         lazily"
    )]
    LazyMigrations,
    /// The migrations did not run.
    #[error(transparent)]
    Migrate(#[from] db_migrate::Error),
    /// Columns are declared to be sealed, and there is no key.
    #[error("columns are declared to be sealed, and there is no encryption key: set --encryption-key-base64")]
    NoEncryptionKey,
    /// The columns that are declared to be sealed do not fit the database.
    #[error(transparent)]
    Columns(#[from] ColumnsError),
    /// Data keys were to be wrapped, and not to be on record.
    #[error("data keys that a root key wraps are on record in the database: do not turn the record off")]
    UnrecordedEnvelope,
    /// The encryption keys could not be read.
    #[error(transparent)]
    KeySource(#[from] KeySourceError),
    /// The encryption keys are not those of the database, or this process could not be put on record with them.
    #[error(transparent)]
    Keys(#[from] KeyRecordError),
    /// Values are not sealed under the primary key, and [`Options::rekey`] refuses that.
    #[error(transparent)]
    Rekey(#[from] RekeyError),
    /// A pool could not open its `min_idle` connections.
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
            Self::Columns(ColumnsError::Database(error))
            | Self::Keys(KeyRecordError::Database { cause: error, .. }) => {
                matches!(error.class(), Class::Lost | Class::NotReached)
            }
            // Pools have already retried within their own limits.
            Self::ConnectionBudgetExceeded(_)
            | Self::NoEncryptionKey
            | Self::Columns(_)
            | Self::KeySource(_)
            | Self::UnrecordedEnvelope
            | Self::Rekey(_)
            | Self::Keys(_)
            | Self::NoDirect(_)
            | Self::LazyMigrations
            | Self::WarmUp(_) => false,
        }
    }
}

/// Opens a database: waits for the server, migrates, makes the pools and starts the bus. When it returns, each pool has its
/// [`min_idle`](db_core::PoolOptions::min_idle) connections ready, and the bus listens. [Lazy](Options::lazy) opening leaves all that to
/// the first use.
///
/// When the server is lost meanwhile, it is waited for again and the failed step is repeated, all within [`Options::wait`]. An
/// error that waiting cannot repair is returned at once. Each failed attempt logs one line.
///
/// Dropping the future leaves no task or connection behind; migrations that were applied stay.
///
/// # Errors
///
/// [`OpenError`] of the step that failed.
pub async fn open(mut options: Options) -> Result<Db, OpenError> {
    let told = std::mem::take(&mut options.told);
    told.at(StartupPhase::Connecting);
    let config = options.database.clone();
    let limit = |pool| config.apply_to(pool);
    let mut options = Options {
        api: limit(options.api),
        backend: limit(options.backend),
        named: options.named.into_iter().map(limit).collect(),
        ..options
    };
    let direct = options.direct.clone().unwrap_or_else(|| config.clone());
    if direct.pooler() != Pooler::None {
        return Err(OpenError::NoDirect(direct.to_string()));
    }

    let (sources, root) = (options.keys.take(), options.root_key.take());
    let holder = Box::pin(Holder::read(sources, root, options.holding)).await?;
    if options.columns.is_locked() {
        let strategy = holder.as_ref().ok_or(OpenError::NoEncryptionKey)?.strategy();
        // Only another call of `open` with the same columns could be earlier, and theirs are the keys then.
        options.columns.unlock(strategy).ok();
    }

    let mut steps = Steps(RetryBudget::new(options.wait));
    if options.lazy {
        if options.migrations.is_some() {
            return Err(OpenError::LazyMigrations);
        }
    } else {
        let first = steps.survive(&config, "reach the server", |left| reach(&config, left, &options)).await?;
        if options.migrations.is_some() {
            told.at(StartupPhase::Migrating);
        }
        // Boxed, as the other steps are, or the future of `open` would be as large as all of them.
        match &options.migrations {
            // Opening another session would cost as much as everything that runs on this one.
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

    told.at(StartupPhase::Opening);
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
        // Concurrently, since neither depends on the other.
        let (bus, _) = tokio::try_join!(listening, warm.map_err(OpenError::from))?;
        told.at(StartupPhase::CheckingKeys);
        let columns = |_| options.columns.check(&backend).map_err(OpenError::from);
        steps.survive(&config, "compare the declared columns", columns).await?;
        if let Some(holder) = &holder {
            let register = |_| holder.register(&backend).map_err(OpenError::from);
            steps.survive(&config, "compare the encryption keys", register).await?;
        }
        bus
    };
    let mut holding = holder.map(|holder| holder.hold(&backend));
    if let (Some(holding), false) = (&mut holding, options.lazy) {
        Box::pin(holding.rekey(&direct, &options.columns, options.rekey)).await?;
    }
    if config.pooler() != Pooler::None && !options.lazy {
        tracing::info!(%config, %direct, "a pooler is in between: prepared statements work, and LISTEN delivers past it");
    }
    [&api, &backend].into_iter().chain(&named).for_each(|pool| equip(pool, &bus, holding.as_ref()));
    let events = EventLogs::with_options(backend.clone(), &bus, &options.topics, options.events);
    #[cfg(feature = "redis")]
    let redis = options.redis.map(Redis::new);
    let heart = Heart {
        config: config.clone().with_application_name("pulse"),
        api: api.clone(),
        others: named.iter().chain([&backend]).cloned().collect(),
        migrations: options.migrations,
        waits_for_use: options.lazy,
        #[cfg(feature = "redis")]
        redis: redis.clone(),
    };
    let parts = Parts {
        pools: Pools { api, backend, named },
        bus,
        events,
        holding,
        pulse: Pulse::start(heart),
        instances: options.instances.max(1),
        #[cfg(feature = "redis")]
        redis,
    };
    let db = Db::new(parts, options.monitor);
    told.at(StartupPhase::Opened);
    Ok(db)
}

/// Handles and transactions of the pool find the bus and the keys.
fn equip(pool: &Pool, bus: &Bus, holding: Option<&Holding>) {
    pool.attach(Arc::new(bus.clone()));
    if let Some(holding) = holding {
        pool.attach(Arc::clone(holding.keys()));
    }
}

/// The steps of opening, which have one deadline together.
struct Steps(RetryBudget);

impl Steps {
    fn left(&self) -> ConnectRetry {
        self.0.left()
    }

    /// Makes an error count all attempts to connect, and not only those of the last step.
    fn counted<T>(&mut self, mut done: Result<T, OpenError>) -> Result<T, OpenError> {
        if let Err(OpenError::Connect(error)) = &mut done {
            self.0.count(error);
        }
        done
    }

    /// Repeats a step after a transient error. The steps before it stay done.
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
                // The error of the last complete attempt says more than a timeout.
                Err(_) => break,
            }
        }
        done
    }
}

/// Waits for the server, and checks whether it has room for the pools.
async fn reach(config: &Config, left: ConnectRetry, options: &Options) -> Result<PgConnection, OpenError> {
    let mut first = connect::connect(config, left).await?;
    // Behind a pooler, the pooler decides how many sessions the server sees.
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
