//! A server that is there for one check, and its databases.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use db_core::{Config, ConnectRetry};
use db_embedded::{Programs, Server};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::error::CheckError;
use crate::run::close;
use crate::session;

/// The first bytes of what `pg_dump --format=custom` writes.
const CUSTOM: &[u8] = b"PGDMP";

/// How long a session may take to end, after its client has closed it.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(1);

pub(super) struct Throwaway {
    server: Server,
    /// In the database `postgres`.
    admin: PgConnection,
}

impl Throwaway {
    /// Starts a server, in memory if its data is small.
    pub(super) async fn start(is_small: bool) -> Result<Self, CheckError> {
        let builder = Server::throwaway().setting("autovacuum", "off").setting("jit", "off");
        let builder = if is_small { builder.in_memory() } else { builder };
        let server = blocking(move || builder.start()).await?;
        let admin = session::open(&address(&server, "postgres"), ConnectRetry::default()).await;
        let admin = admin.map_err(crate::Error::from)?;
        Ok(Self { server, admin })
    }

    pub(super) fn config(&self, database: &str) -> Config {
        address(&self.server, database)
    }

    pub(super) fn major(&self) -> u32 {
        self.server.version().major
    }

    pub(super) async fn session(&self, database: &str) -> Result<PgConnection, CheckError> {
        let opened = session::open(&self.config(database), ConnectRetry::default()).await;
        Ok(opened.map_err(crate::Error::from)?)
    }

    /// Makes a database, as a copy of another.
    pub(super) async fn make(&mut self, database: &str, of: &str) -> Result<(), CheckError> {
        let what = "make a database";
        // The server would look for them itself, ten times a second.
        let deadline = Instant::now() + ENDS_WITHIN;
        loop {
            let sql = "select count(*) from pg_stat_activity where datname = $1 and backend_type = 'client backend'";
            let asked = sqlx::query_scalar::<_, i64>(sql).bind(of).fetch_one(&mut self.admin).await;
            if asked.map_err(CheckError::database(what))? == 0 || Instant::now() >= deadline {
                break;
            }
            sleep(LOOK).await;
        }
        self.run(what, format!("create database {database} template {of}")).await
    }

    pub(super) async fn remove(&mut self, database: &str) -> Result<(), CheckError> {
        self.run("drop a database", format!("drop database {database} with (force)")).await
    }

    async fn run(&mut self, what: &'static str, sql: String) -> Result<(), CheckError> {
        let done = self.admin.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        done.map(drop).map_err(CheckError::database(what))
    }

    /// Those of these extensions that cannot be made.
    pub(super) async fn missing(&mut self, names: Vec<String>) -> Result<Vec<String>, CheckError> {
        let sql = "select name from unnest($1::text[]) as wanted (name)
                   where name not in (select name from pg_available_extensions) group by name order by name";
        let asked = sqlx::query_scalar(sql).bind(names).fetch_all(&mut self.admin).await;
        asked.map_err(CheckError::database("look for extensions"))
    }

    /// Runs statements that the caller gives.
    pub(super) async fn set_up(&self, database: &str, sql: &str) -> Result<(), CheckError> {
        let mut session = self.session(database).await?;
        let done = session.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await;
        close(session).await;
        done.map(drop).map_err(|cause| CheckError::Setup(cause.into()))
    }

    /// Restores a dump, by the program that is made for its format.
    pub(super) async fn restore(&self, database: &str, file: &Path) -> Result<(), CheckError> {
        let failed = |reason: String| CheckError::Dump { file: file.to_owned(), reason };
        let is_custom = file.is_dir() || begins(file).map_err(|error| failed(error.to_string()))? == CUSTOM;
        let (name, args): (_, &[&str]) = if is_custom {
            ("pg_restore", &["--no-owner", "--no-privileges", "--exit-on-error"])
        } else {
            // Terse, since the context of an error shows rows.
            (
                "psql",
                &[
                    "--no-psqlrc",
                    "--quiet",
                    "--set=ON_ERROR_STOP=1",
                    "--set=VERBOSITY=terse",
                    "--output=/dev/null",
                ],
            )
        };
        let program =
            blocking(move || Ok(Programs::find(None)?.path(name).unwrap_or_else(|_| PathBuf::from(name))))
                .await?;
        let mut command = Command::new(program);
        command.args(args).arg(format!("--dbname={}", self.server.url(database)));
        if is_custom {
            command.arg(file);
        } else {
            command.arg("--file").arg(file);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output =
            command.output().await.map_err(|error| failed(format!("{name} does not run: {error}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(said.lines().last().unwrap_or("without a message").to_owned()));
        }
        let mut session = self.session(database).await?;
        let done = session.execute("analyze").await;
        close(session).await;
        done.map(drop).map_err(CheckError::database("analyze what was restored"))
    }

    /// Stops the server and removes its data.
    pub(super) async fn end(self) -> Result<(), CheckError> {
        let Self { server, admin } = self;
        if let Err(error) = admin.close().await {
            tracing::debug!(%error, "the session of the check was lost before it was closed");
        }
        blocking(move || server.release()).await.map(drop)
    }
}

fn address(server: &Server, database: &str) -> Config {
    Config::from_url(&server.url(database)).expect("db-embedded makes addresses that db-core reads")
}

fn begins(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(CUSTOM.len() as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, db_embedded::Error> + Send + 'static,
) -> Result<T, CheckError> {
    let done = tokio::task::spawn_blocking(work).await;
    // It is not cancelled, and a panic of it goes on here.
    Ok(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
}
