//! The server that the arms are measured on.

use std::borrow::Cow;

use anyhow::{Context, ensure};
use db_core::{Config, ConnectRetry, connect};
use db_embedded::{Builder, Server};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::runtime::Runtime;
use url::Url;

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// Commits do not wait, so that the round trip is measured.
    Quick,
    /// Commits wait, as in production.
    Durable,
}

/// A database for one topic. If the program is killed, the database stays on a server that is not thrown away.
#[derive(Debug)]
pub(crate) struct Database {
    /// The address of the database that created it.
    admin: Config,
    name: String,
    url: String,
    what: String,
    /// `None` if the server is not ours.
    _throwaway: Option<Server>,
}

impl Database {
    /// Runs `work` on a database whose commits do not wait for the disk. The server is that of `DATABASE_URL`, else a
    /// throwaway server.
    pub(crate) fn with<T>(
        runtime: &Runtime,
        work: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Self::with_commits(runtime, Commits::Quick, work)
    }

    /// As [`with`](Self::with), with the files of a throwaway server in memory.
    pub(crate) fn in_memory<T>(
        runtime: &Runtime,
        work: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Self::on(runtime, Commits::Quick, throwaway(Commits::Quick).in_memory(), work)
    }

    /// As [`with`](Self::with), with a choice about commits.
    pub(crate) fn with_commits<T>(
        runtime: &Runtime,
        commits: Commits,
        work: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Self::on(runtime, commits, throwaway(commits), work)
    }

    fn on<T>(
        runtime: &Runtime,
        commits: Commits,
        builder: Builder,
        work: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let database = Self::make(runtime, commits, builder)?;
        let result = work(&database);
        let removed = runtime.block_on(database.remove());
        let value = result?;
        removed.context("dropping the benchmark's database")?;
        Ok(value)
    }

    fn make(runtime: &Runtime, commits: Commits, builder: Builder) -> anyhow::Result<Self> {
        let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        let (throwaway, url, whose) = if let Some(url) = given {
            (None, url, "the server of DATABASE_URL")
        } else {
            let server = builder.start()?;
            let url = server.url("postgres");
            (Some(server), url, "a throwaway server")
        };
        let admin = Config::from_url(&url)?;
        let name = format!("bench_{}", std::process::id());
        let mut database =
            Self { url: address(&url, &name)?, what: String::new(), admin, name, _throwaway: throwaway };
        let version = runtime.block_on(database.create(commits))?;
        let durable = if commits == Commits::Durable { ", commits wait for the disk" } else { "" };
        database.what = format!("{whose}, {}, PostgreSQL {version}{durable}", database.admin);
        Ok(database)
    }

    /// The address in a form that all drivers read alike.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The address as a [`Config`].
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::from_url(&self.url)?)
    }

    /// A description of the measured server.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    async fn create(&self, commits: Commits) -> anyhow::Result<String> {
        let mut conn = self.connect().await?;
        let Self { name, .. } = self;
        sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut conn).await?;
        let waits = if commits == Commits::Durable { "on" } else { "off" };
        // For all connections of all drivers.
        sqlx::query(AssertSqlSafe(format!("alter database {name} set synchronous_commit = {waits}")))
            .execute(&mut conn)
            .await?;
        let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut conn).await?;
        // The packager's version follows.
        Ok(version.split(' ').next().unwrap_or_default().to_owned())
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let mut conn = self.connect().await?;
        // Connections of the pools may still be open.
        let drop = format!("drop database {} with (force)", self.name);
        sqlx::query(AssertSqlSafe(drop)).execute(&mut conn).await?;
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(connect::connect(&self.admin, ConnectRetry::default()).await?)
    }
}

fn throwaway(commits: Commits) -> Builder {
    let builder = Server::throwaway();
    match commits {
        Commits::Quick => builder,
        // The settings of a kept server.
        Commits::Durable => [("fsync", "on"), ("full_page_writes", "on"), ("shared_buffers", "128MB")]
            .into_iter()
            .fold(builder, |builder, (name, value)| builder.setting(name, value)),
    }
}

/// The same server with another database, in a form that all drivers read alike: all parts before the
/// `?`. From `localhost/?host=/run`, tokio-postgres would make two servers, and try the wrong one first.
///
/// TLS is off for all arms, since some of the peers are built without it.
fn address(url: &str, database: &str) -> anyhow::Result<String> {
    let given = Url::parse(url).context("the database's address")?;
    let mut url = given.clone();
    url.set_query(None);
    url.set_path(database);
    let fits = "this address cannot be written in a form that all drivers read alike";
    for (name, value) in given.query_pairs() {
        match &*name {
            "host" => url.set_host(Some(&host(&value))).context(fits)?,
            "port" => url.set_port(Some(value.parse()?)).ok().context(fits)?,
            "user" => url.set_username(&value).ok().context(fits)?,
            "password" => url.set_password(Some(&value)).ok().context(fits)?,
            "dbname" => {}
            other => ensure!(
                matches!(other, "sslmode" | "application_name"),
                "the parameter `{other}` of the address is not known to all drivers"
            ),
        }
    }
    url.query_pairs_mut().append_pair("sslmode", "disable");
    Ok(url.into())
}

/// The host; a folder has its slashes encoded.
fn host(text: &str) -> Cow<'_, str> {
    if text.starts_with('/') { Cow::Owned(text.replace('%', "%25").replace('/', "%2F")) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_everything_before_the_question_mark() {
        let of = |url| address(url, "bench").expect("a good address");

        assert_eq!(
            of("postgres://localhost/postgres?host=%2Ftmp%2Fpg&port=5433&user=app"),
            "postgres://app@%2Ftmp%2Fpg:5433/bench?sslmode=disable"
        );
        assert_eq!(
            of("postgres://app:secret@db:7/shop?sslmode=require"),
            "postgres://app:secret@db:7/bench?sslmode=disable"
        );
        assert!(address("postgres://db/shop?options=x", "bench").is_err());
    }
}
