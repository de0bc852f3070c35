//! The connection that makes, locks and drops databases.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::deadline::Deadline;
use crate::error::{Error, sqlstate};
use crate::server::TestServer;
use crate::sessions::{Seen, sessions_in};

/// "Too many connections", and "the server is starting or recovering": both are worth a retry.
const PASSES: [&str; 2] = ["53300", "57P03"];

/// How often, and after which pauses, sessions that are to end are looked for: 100 ms in all.
const ENDING_LOOKS: u32 = 50;
const ENDING_PAUSE: Duration = Duration::from_millis(2);

/// A session in the maintenance database. Its advisory locks mark the databases in use; they last until the session ends,
/// however it ends. A pooler that shares sessions between clients would break that.
#[derive(Debug)]
pub(crate) struct Admin {
    connection: PgConnection,
    home: i64,
    /// How a database is copied.
    strategy: &'static str,
}

impl Admin {
    pub(crate) async fn connect(server: &TestServer, deadline: Deadline) -> Result<Admin, Error> {
        let options = server.maintenance()?;
        let mut connection = loop {
            match options.connect().await {
                Ok(connection) => break connection,
                Err(error) if sqlstate(&error).is_some_and(|state| PASSES.contains(&state.as_str())) => {
                    deadline.pause("a free connection to the server").await?;
                }
                Err(source) => {
                    let database = options.get_database().unwrap_or("(its default)").to_owned();
                    return Err(Error::Connect { database, server: server.name(), source });
                }
            }
        };
        let sql = "
            select oid::int8, current_setting('fsync') = 'off' and current_setting('server_version_num')::int4 >= 150000
            from pg_database
            where datname = current_database()";
        let (home, copies_files): (i64, bool) =
            sqlx::query_as(sql).fetch_one(&mut connection).await.map_err(|source| Error::Statement {
                action: "identify",
                database: "the maintenance database".into(),
                source,
            })?;
        // Copying files takes half the time of a copy through the log, and has two checkpoints. They are quick where nothing
        // waits for a disk. Versions before 15 always copy files.
        let strategy = if copies_files { "strategy file_copy" } else { "" };
        Ok(Admin { connection, home, strategy })
    }

    /// The object id of the maintenance database. Advisory locks are visible in one database only, so processes with another
    /// maintenance database must use other names, and must not drop ours.
    pub(crate) fn home(&self) -> i64 {
        self.home
    }

    /// Tries to take the lock that belongs to a database's name; false if another session has it.
    pub(crate) async fn try_lock(&mut self, database: &str) -> Result<bool, Error> {
        sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended($1, 0))")
            .bind(database)
            .fetch_one(&mut self.connection)
            .await
            .map_err(|source| Error::Statement { action: "lock", database: database.to_owned(), source })
    }

    pub(crate) async fn unlock(&mut self, database: &str) -> Result<(), Error> {
        sqlx::query("select pg_advisory_unlock(hashtextextended($1, 0))")
            .bind(database)
            .execute(&mut self.connection)
            .await
            .map_err(|source| Error::Statement { action: "unlock", database: database.to_owned(), source })?;
        Ok(())
    }

    /// Runs a statement about databases, which takes no parameters. The names in it are ours: lower case letters, digits and
    /// underscores.
    pub(crate) async fn run(
        &mut self,
        action: &'static str,
        database: &str,
        sql: String,
    ) -> Result<(), Error> {
        self.connection
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .map_err(|source| Error::Statement { action, database: database.to_owned(), source })?;
        Ok(())
    }

    pub(crate) async fn clone_database(&mut self, database: &str, template: &str) -> Result<(), Error> {
        let strategy = self.strategy;
        self.run("create", database, format!("create database {database} template {template} {strategy}"))
            .await
    }

    /// Drops the database and ends all sessions in it.
    pub(crate) async fn drop_by_force(&mut self, database: &str) -> Result<(), Error> {
        // The statement ends them, too, but looks only every 100 ms whether they have ended.
        if let Err(error) = self.end_sessions(database).await {
            tracing::debug!(database, %error, "the sessions in a database are left to the statement that drops it");
        }
        self.run("drop", database, format!("drop database if exists {database} with (force)")).await
    }

    /// Ends the sessions of clients, and waits for a moment until they have ended.
    async fn end_sessions(&mut self, database: &str) -> Result<(), Error> {
        let sql = "
            select pg_terminate_backend(pid)
            from pg_stat_activity
            where datname = $1 and backend_type = 'client backend' and pid <> pg_backend_pid()";
        for _ in 0..ENDING_LOOKS {
            if self.rows(sql, database).await?.is_empty() {
                break;
            }
            tokio::time::sleep(ENDING_PAUSE).await;
        }
        Ok(())
    }

    pub(crate) async fn rows(&mut self, sql: &'static str, about: &str) -> Result<Vec<PgRow>, Error> {
        sqlx::query(sql)
            .bind(about)
            .fetch_all(&mut self.connection)
            .await
            .map_err(|source| Error::Statement { action: "look for", database: about.to_owned(), source })
    }

    /// The sessions in a database, with those of [`TestDb::pool`](crate::TestDb::pool).
    pub(crate) async fn sessions_in(&mut self, database: &str) -> Result<Vec<Seen>, Error> {
        sessions_in(&mut self.connection, database, true).await
    }

    /// Closes the session gracefully, or the server would log a lost client.
    pub(crate) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "the maintenance connection was lost before it was closed");
        }
    }
}
