//! The database: the one that the settings name, else one that starts by itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use db_embedded::Server;
use db_layer::encryption::Keyring;
use db_layer::{Config, ConnectRetry, Db, LogTopics, Migrations, Options, Topic};
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

use crate::cli::Site;
use crate::home;

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// How long an end may take.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// An open database and, if it is ours, the server that it lives in.
pub(crate) struct Opened {
    pub(crate) db: Db,
    /// Where the database is, for people.
    pub(crate) place: String,
    server: Option<Server>,
}

impl Opened {
    /// Closes the database, and gives up the lease on the server.
    pub(crate) async fn close(self) {
        let report = self.db.shutdown(SHUTDOWN).await;
        tracing::debug!(?report, "database closed");
        self.release().await;
    }

    /// Gives up the lease on the server, once the database is closed.
    pub(crate) async fn release(self) {
        release(self.server).await;
    }
}

/// What to open, and the server that must live as long as it is used.
pub(crate) struct Place {
    pub(crate) options: Options,
    pub(crate) server: Option<Server>,
}

/// Opens the database for everything but migrating.
pub(crate) async fn open(site: &Site) -> anyhow::Result<Opened> {
    let key = if site.settings.has_encryption_key() { None } else { Some(home::key(&data_home(site)?)?) };
    let Place { options, server } = place(site).await?;
    let place = match &server {
        Some(server) => {
            format!("PostgreSQL {} of its own in {}", server.version(), data_home(site)?.display())
        }
        None => options.database.to_string(),
    };
    let mut options = options.migrations(migrations()).namespace("buildwatch");
    options.topics = topics()?;
    if let Some(key) = key {
        options = options.keyring(Keyring::new(&key));
    }
    match db_layer::open(options).await {
        Ok(db) => Ok(Opened { db, place, server }),
        Err(error) => {
            release(server).await;
            Err(error.into())
        }
    }
}

/// Each build's events have a topic, and NOTIFY is for those that somebody watches, in whatever process.
fn topics() -> anyhow::Result<LogTopics> {
    Ok(LogTopics::new("build_events_", Topic::new("being_watched_build_event_channel")?)?)
}

pub(crate) fn migrations() -> Migrations {
    Migrations::new(&MIGRATOR)
}

/// Finds the database, starting a server when there is none to be found.
pub(crate) async fn place(site: &Site) -> anyhow::Result<Place> {
    if site.settings.has_database() {
        return Ok(Place { options: site.settings.options()?, server: None });
    }

    // Not after a server was started.
    site.settings.check_without_database()?;
    let dir = home::server_dir(&data_home(site)?)?;
    // Starting is work of files and processes, which blocks.
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

/// The data folder, made if it is not there; but not where the embedded server could not reach it, if there is to be one.
fn data_home(site: &Site) -> anyhow::Result<PathBuf> {
    if !site.settings.has_database() {
        home::check_way(site.data.as_deref())?;
    }
    home::data_dir(site.data.as_deref())
}

/// The database on our own server, made on first use.
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
        // Somebody else was quicker: 42P04 when he is done, 23505 when he was at it.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P04" | "23505")) => {
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Gives up the lease; the last one to do so waits until the server has stopped.
pub(crate) async fn release(server: Option<Server>) {
    let Some(server) = server else { return };
    match tokio::task::spawn_blocking(move || server.release()).await {
        Ok(Ok(released)) => tracing::debug!(?released, "server released"),
        Ok(Err(error)) => tracing::warn!(%error, "the embedded server was not seen to stop"),
        Err(error) => tracing::warn!(%error, "the embedded server was not released"),
    }
}
