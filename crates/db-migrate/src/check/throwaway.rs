//! A server that is there for one check, and its databases.

use std::time::Duration;

use db_core::sql::split;
use db_core::{Config, ConnectRetry};
use db_embedded::Server;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::{Instant, sleep};

use super::error::CheckError;
use crate::run::close;
use crate::session;
use crate::table::quoted;

/// The database that only goes up.
pub(super) const LINE: &str = "line";

/// A copy that is changed and thrown away.
pub(super) const COPY: &str = "copy";

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

    /// The address of a database, for programs that read libpq's.
    pub(super) fn url(&self, database: &str) -> String {
        self.server.url(database)
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, db_embedded::Error> + Send + 'static,
) -> Result<T, CheckError> {
    let done = tokio::task::spawn_blocking(work).await;
    // It is not cancelled, and a panic of it goes on here.
    Ok(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
}
