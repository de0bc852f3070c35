//! Opens the database that the settings name, else one on an embedded server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use db_embedded::Server;
use db_layer::encryption::KeySources;
use db_layer::{AtOpen, Config, ConnectRetry, Db, LogTopics, Migrations, Options, Topic};
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

use crate::builds::Plans;
use crate::cli::Site;
use crate::{home, took};

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// A tenth of the time for which people wait for a page.
const QUEUE_TARGET: Duration = Duration::from_millis(200);

/// Limit for closing the database.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// An open database and, unless the settings name one, its embedded server.
pub(crate) struct Opened {
    pub(crate) db: Db,
    pub(crate) plans: Arc<Plans>,
    /// The address that leads past a pooler.
    pub(crate) direct: Config,
    /// The database, described for users.
    pub(crate) place: String,
    server: Option<Server>,
}

impl Opened {
    /// Closes the database, and releases the lease on the server.
    pub(crate) async fn close(self) {
        let report = self.db.shutdown(SHUTDOWN).await;
        tracing::debug!(?report, "database closed");
        self.release().await;
    }

    /// Releases the lease on the server, once the database is closed.
    pub(crate) async fn release(self) {
        release(self.server).await;
    }
}

/// What to open, and the server that must outlive it.
pub(crate) struct Place {
    pub(crate) options: Options,
    pub(crate) server: Option<Server>,
}

/// Opens the database, migrated to the newest version. A program that serves re-keys; others leave that to it.
pub(crate) async fn open(site: &Site, rekey: AtOpen) -> anyhow::Result<Opened> {
    let keys = keys(site)?;
    let Place { options, server } = place(site).await?;
    let place = match &server {
        Some(server) => {
            format!("embedded PostgreSQL {} in {}", server.version(), data_home(site)?.display())
        }
        None => options.database.to_string(),
    };
    let direct = options.direct.clone().unwrap_or_else(|| options.database.clone());
    let mut options = options.migrations(migrations()).namespace("buildwatch").rekey(rekey);
    options.topics = topics()?;
    // Readers of an overloaded server get an answer soon, and not all of them one that is late.
    options.api.queue_target = Some(QUEUE_TARGET);
    if let Some(keys) = keys {
        options = options.keys(keys);
    }
    let plans = Arc::new(Plans::declare(&options.columns));
    match db_layer::open(options).await {
        Ok(db) => Ok(Opened { db, plans, direct, place, server }),
        Err(error) => {
            release(server).await;
            Err(error.into())
        }
    }
}

/// The key of the data folder. `None` if the settings give one.
pub(crate) fn keys(site: &Site) -> anyhow::Result<Option<KeySources>> {
    if site.settings.has_encryption_key() {
        return Ok(None);
    }
    Ok(Some(home::key(&data_home(site)?)?.into()))
}

/// Each build's events have a topic, and NOTIFY is sent only for topics that a process watches.
fn topics() -> anyhow::Result<LogTopics> {
    Ok(LogTopics::new("build_events_", Topic::new("being_watched_build_event_channel")?)?)
}

pub(crate) fn migrations() -> Migrations {
    Migrations::new(&MIGRATOR)
        .with_repeatable("build_overview", include_str!("../../../migrations/repeatable/build_overview.sql"))
        .with_batches(took::STEP, took::fill())
}

/// Finds the database, and starts a server if the settings name none.
pub(crate) async fn place(site: &Site) -> anyhow::Result<Place> {
    if site.settings.has_database() {
        return Ok(Place { options: site.settings.options()?, server: None });
    }

    // Before a server is started.
    site.settings.check_without_database()?;
    let dir = home::server_dir(&data_home(site)?)?;
    // Starting a server blocks.
    let server = tokio::task::spawn_blocking(move || Server::kept(dir).start()).await??;
    let options = match database(&server).await {
        Ok(config) => site.settings.options_for(config).map_err(Into::into),
        Err(error) => Err(error),
    };
    match options {
        Ok(options) => Ok(Place { options, server: Some(server) }),
        Err(error) => {
            release(Some(server)).await;
            Err(error)
        }
    }
}

/// The data folder, made if it does not exist, unless an embedded server is needed and could not reach it.
fn data_home(site: &Site) -> anyhow::Result<PathBuf> {
    if !site.settings.has_database() {
        home::check_way(site.data.as_deref())?;
    }
    home::data_dir(site.data.as_deref())
}

/// The database on the embedded server, made at the first use.
async fn database(server: &Server) -> anyhow::Result<Config> {
    let maintenance = Config::from_url(&server.url("postgres")).context("the embedded server's address")?;
    let mut connection = db_layer::db_core::connect::connect(&maintenance, ConnectRetry::default()).await?;
    let made = ensure_database(&mut connection).await;
    connection.close().await.ok();
    made.context("cannot make the database on the embedded server")?;
    Ok(maintenance.with_database("buildwatch"))
}

async fn ensure_database(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let exists: Option<(i32,)> = sqlx::query_as("select 1 from pg_database where datname = 'buildwatch'")
        .fetch_optional(&mut *connection)
        .await?;
    if exists.is_some() {
        return Ok(());
    }
    match sqlx::query("create database buildwatch").execute(connection).await {
        // Another process was first: 42P04 if it has finished, 23505 if it is making the database.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P04" | "23505")) => {
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Releases the lease. If it was the last one, waits until the server has stopped.
pub(crate) async fn release(server: Option<Server>) {
    let Some(server) = server else { return };
    match tokio::task::spawn_blocking(move || server.release()).await {
        Ok(Ok(released)) => tracing::debug!(?released, "server released"),
        Ok(Err(error)) => tracing::warn!(%error, "could not wait for the embedded server to stop"),
        Err(error) => tracing::warn!(%error, "releasing the embedded server panicked"),
    }
}
