//! The server that ours and the peers are measured on.

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
    /// It does not: what is measured is the way there and back.
    Quick,
    /// It does, as it does wherever data has to survive.
    Durable,
}

/// A database of its own, for as long as a topic is measured. Who is killed leaves it on a server that is not thrown away.
#[derive(Debug)]
pub(crate) struct Database {
    /// The one that it was made from.
    admin: Config,
    name: String,
    url: String,
    what: String,
    /// None if the server is somebody else's.
    _throwaway: Option<Server>,
}

impl Database {
    /// Runs `work` on a database that does not wait for the disk. It is on the server that `DATABASE_URL` names, or else on one
    /// that is thrown away.
    pub(crate) fn with<T>(
        runtime: &Runtime,
        work: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Self::with_commits(runtime, Commits::Quick, work)
    }

    /// The same with the choice.
    pub(crate) fn with_commits<T>(
        runtime: &Runtime,
        commits: Commits,
        work: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let database = Self::make(runtime, commits)?;
        let result = work(&database);
        let removed = runtime.block_on(database.remove());
        let value = result?;
        removed.context("dropping the benchmark's database")?;
        Ok(value)
    }

    fn make(runtime: &Runtime, commits: Commits) -> anyhow::Result<Self> {
        let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        let (throwaway, url, whose) = if let Some(url) = given {
            (None, url, "the server of DATABASE_URL")
        } else {
            let server = throwaway(commits).start()?;
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

    /// Its address, which everybody reads alike.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The same, for us.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::from_url(&self.url)?)
    }

    /// What it is measured on, in words.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    async fn create(&self, commits: Commits) -> anyhow::Result<String> {
        let mut conn = self.connect().await?;
        let Self { name, .. } = self;
        sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut conn).await?;
        let waits = if commits == Commits::Durable { "on" } else { "off" };
        // For whoever connects, by whatever driver.
        sqlx::query(AssertSqlSafe(format!("alter database {name} set synchronous_commit = {waits}")))
            .execute(&mut conn)
            .await?;
        let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut conn).await?;
        // What follows is the packager's.
        Ok(version.split(' ').next().unwrap_or_default().to_owned())
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let mut conn = self.connect().await?;
        // The pools have connections open still.
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
        // What a kept server has.
        Commits::Durable => [("fsync", "on"), ("full_page_writes", "on"), ("shared_buffers", "128MB")]
            .into_iter()
            .fold(builder, |builder, (name, value)| builder.setting(name, value)),
    }
}

/// The same server and another database, in the one form that all drivers read alike: everything in its place before the
/// `?`. Of `localhost/?host=/run`, tokio-postgres makes two servers, and asks the wrong one first.
///
/// TLS is off for everybody, since some of the peers are here without it.
fn address(url: &str, database: &str) -> anyhow::Result<String> {
    let given = Url::parse(url).context("the database's address")?;
    let mut url = given.clone();
    url.set_query(None);
    url.set_path(database);
    let fits = "an address that all drivers read alike cannot be made of this one";
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

/// A folder in the place of a host has its slashes encoded.
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
