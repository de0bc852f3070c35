//! A server that is there for one check, and its databases.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use db_core::sql::split;
use db_core::{Config, ConnectRetry};
use db_embedded::{Programs, Server};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::error::CheckError;
use crate::run::close;
use crate::session;
use crate::table::quoted;

/// The first bytes of what `pg_dump` writes as a custom format and as a tar file.
const ARCHIVES: [&[u8]; 2] = [b"PGDMP", b"toc.dat"];

/// How long a session may take to end, after its client has closed it.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(1);

/// What belongs to the whole server.
pub(super) struct Shared {
    databases: Vec<String>,
    roles: Vec<String>,
}

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
        self.run(what, format!("create database {database} template {of}")).await?;
        // The template's settings, which are the server's and not the database's.
        let sql = format!(
            "insert into pg_db_role_setting select made.oid, setrole, setconfig
             from pg_db_role_setting join pg_database as old on old.oid = setdatabase, pg_database as made
             where old.datname = '{of}' and made.datname = '{database}'"
        );
        self.run(what, sql).await
    }

    /// The databases and roles, which no copy of a database separates.
    pub(super) async fn shared(&mut self) -> Result<Shared, CheckError> {
        let names = |sql: &'static str| sqlx::query_scalar::<_, String>(sql);
        let what = "look for databases and roles";
        let databases =
            names("select quote_ident(datname) from pg_database").fetch_all(&mut self.admin).await;
        let roles = names("select quote_ident(rolname) from pg_roles").fetch_all(&mut self.admin).await;
        Ok(Shared {
            databases: databases.map_err(CheckError::database(what))?,
            roles: roles.map_err(CheckError::database(what))?,
        })
    }

    /// Drops the databases and roles that were not there before.
    pub(super) async fn remove_new(&mut self, before: &Shared) -> Result<(), CheckError> {
        let now = self.shared().await?;
        for database in now.databases.iter().filter(|it| !before.databases.contains(it)) {
            self.remove(database).await?;
        }
        for role in now.roles.iter().filter(|it| !before.roles.contains(it)) {
            self.run("drop a role", format!("drop role {role}")).await?;
        }
        Ok(())
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

    /// Runs statements that the caller gives, one by one: some, such as `create database`, run alone only.
    pub(super) async fn set_up(&self, database: &str, sql: &str) -> Result<(), CheckError> {
        let statements = split(sql).map_err(CheckError::SetupText)?;
        let mut session = self.session(database).await?;
        let mut done = Ok(());
        for statement in statements {
            let ran = session.execute(sqlx::raw_sql(AssertSqlSafe(statement.text.to_owned()))).await;
            done = ran.map(drop);
            if done.is_err() {
                break;
            }
        }
        close(session).await;
        done.map_err(|cause| CheckError::Setup(cause.into()))
    }

    /// Makes the role that the migrations run as, unless it is there. In its database it may do all.
    pub(super) async fn make_role(&mut self, role: &str) -> Result<(), CheckError> {
        let what = "make the role of the migrations";
        let sql = "select exists (select from pg_roles where rolname = $1)";
        let is_there = sqlx::query_scalar(sql).bind(role).fetch_one(&mut self.admin).await;
        if is_there.map_err(CheckError::database(what))? {
            return Ok(());
        }
        self.run(what, format!("create role {} superuser", quoted(role))).await
    }

    /// Restores a dump, by the program that is made for its format, without what makes these extensions.
    pub(super) async fn restore(
        &self,
        database: &str,
        file: &Path,
        skipped: &[String],
    ) -> Result<(), CheckError> {
        let failed = |reason: String| CheckError::Dump { file: file.to_owned(), reason };
        let path = file.to_owned();
        let is_script = tokio::task::spawn_blocking(move || is_script(&path)).await;
        let is_script = is_script.map_err(|error| failed(error.to_string()))?;
        let address = format!("--dbname={}", self.server.url(database));
        if is_script.map_err(|error| failed(error.to_string()))? {
            // Terse, since the context of an error shows rows.
            let psql = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse"];
            let psql =
                psql.map(OsStr::new).into_iter().chain([address.as_ref(), "--file".as_ref(), file.as_ref()]);
            program("psql", psql).await.map_err(failed)?;
        } else {
            let list = program("pg_restore", ["--list".as_ref(), file.as_os_str()]).await.map_err(failed)?;
            let is_kept = |line: &&str| !skipped.iter().any(|name| makes_extension(line, name));
            let kept: String = list.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
            let list = tempfile::NamedTempFile::new().map_err(|error| failed(error.to_string()))?;
            std::fs::write(list.path(), kept).map_err(|error| failed(error.to_string()))?;
            let options = ["--no-owner", "--no-privileges", "--exit-on-error", "--use-list"].map(OsStr::new);
            let rest = [list.path().as_ref(), address.as_ref(), file.as_os_str()];
            program("pg_restore", options.into_iter().chain(rest)).await.map_err(failed)?;
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

/// Whether a dump is text, and neither an archive nor a folder.
fn is_script(file: &Path) -> std::io::Result<bool> {
    if file.is_dir() {
        return Ok(false);
    }
    let mut begin = Vec::new();
    File::open(file)?.take(16).read_to_end(&mut begin)?;
    Ok(!ARCHIVES.iter().any(|archive| begin.starts_with(archive)))
}

/// Whether a line of `pg_restore --list` is about an extension, or about its comment.
fn makes_extension(line: &str, name: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    [&["EXTENSION", "-", name][..], &["COMMENT", "-", "EXTENSION", name]]
        .iter()
        .any(|wanted| words.windows(wanted.len()).any(|words| words == *wanted))
}

/// Runs a program of PostgreSQL's, and returns what it printed, or why it failed.
async fn program<'a>(
    name: &'static str,
    args: impl IntoIterator<Item = &'a OsStr>,
) -> Result<String, String> {
    let here = tokio::task::spawn_blocking(move || Programs::find(None)?.path(name));
    // Packages of the server alone lack it; another one may be in the path.
    let path = here.await.ok().and_then(Result::ok).unwrap_or_else(|| PathBuf::from(name));
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| format!("{name} does not run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(reason(&String::from_utf8_lossy(&output.stderr)))
}

/// The line with the error, as far as it shows no value of a row.
fn reason(said: &str) -> String {
    let is_error = |line: &&str| line.contains("error:") || line.contains("ERROR:");
    let line = said.lines().find(is_error).or(said.lines().next()).unwrap_or("without a message");
    let shows_value = ["invalid input", "out of range", "malformed", "duplicate key", "invalid byte"];
    match line.find('"') {
        Some(at) if shows_value.iter().any(|text| line.contains(text)) => line[..at].trim_end().to_owned(),
        _ => line.to_owned(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, db_embedded::Error> + Send + 'static,
) -> Result<T, CheckError> {
    let done = tokio::task::spawn_blocking(work).await;
    // It is not cancelled, and a panic of it goes on here.
    Ok(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
}
