//! The database: the one that `DATABASE_URL` names, else one that starts by itself.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use db_embedded::Server;
use db_layer::encryption::Keyring;
use db_layer::{Config, Db, Migrations, Options, Retry};
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

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
        release(self.server).await;
    }
}

/// Where the database is, and the server that must live as long as it is used.
pub(crate) struct Place {
    pub(crate) config: Config,
    pub(crate) server: Option<Server>,
}

/// Opens the database for everything but migrating.
pub(crate) async fn open(data: Option<&Path>) -> anyhow::Result<Opened> {
    let dir = home::data_dir(data)?;
    let keyring = Keyring::new(&home::key(&dir)?);
    let Place { config, server } = place(data).await?;
    let place = match &server {
        Some(server) => format!("PostgreSQL {} of its own in {}", server.version(), dir.display()),
        None => config.to_string(),
    };
    let options = Options::new(config).migrations(migrations()).keyring(keyring).namespace("buildwatch");
    match db_layer::open(options).await {
        Ok(db) => Ok(Opened { db, place, server }),
        Err(error) => {
            release(server).await;
            Err(error.into())
        }
    }
}

pub(crate) fn migrations() -> Migrations {
    Migrations::new(&MIGRATOR)
}

/// Finds the database, starting a server when there is none to be found.
pub(crate) async fn place(data: Option<&Path>) -> anyhow::Result<Place> {
    match std::env::var("DATABASE_URL") {
        Ok(url) if !url.is_empty() => {
            let config = Config::from_url(&url).context("DATABASE_URL")?;
            return Ok(Place { config, server: None });
        }
        Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("DATABASE_URL is not UTF-8"),
        _ => {}
    }

    let dir = home::server_dir(&home::data_dir(data)?);
    // Starting is work of files and processes, which blocks.
    let server = tokio::task::spawn_blocking(move || Server::kept(dir).start()).await??;
    match database(&server).await {
        Ok(config) => Ok(Place { config, server: Some(server) }),
        Err(error) => {
            release(Some(server)).await;
            Err(error)
        }
    }
}

/// The database on our own server, made on first use.
async fn database(server: &Server) -> anyhow::Result<Config> {
    let maintenance = Config::from_url(&server.url("postgres")).context("the embedded server's address")?;
    let mut connection = db_layer::db_core::connect::connect(&maintenance, Retry::default()).await?;
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
