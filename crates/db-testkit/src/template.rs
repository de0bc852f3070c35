//! A migrated database that is copied for each test.
//!
//! Its name is a digest of the migrations, so that changed migrations make another template. When it is finished it is marked
//! as a template and closed to connections. A template without that mark whose lock is free was left by a killed process.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use crate::admin::Admin;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::migrations::{Repeatable, Resolved};
use crate::server::{APPLICATION_NAME, TestServer};

/// Seconds between two notes of a template's use, since each note is a write.
const NOTED_EVERY: u64 = 60 * 60;

/// Seconds without use after which a template is dropped.
const STALE_AFTER: u64 = 24 * 60 * 60;

/// The text before the time in the database's comment.
const NOTE: &str = "db-testkit template, last used at ";

/// Returns the template for these migrations: finds it, makes it, or waits until another test has made it.
///
/// The lock is tried and not waited for: a waiting statement holds a snapshot, which blocks `CREATE INDEX CONCURRENTLY` in a
/// migration for ever.
pub(crate) async fn ensure(
    server: &TestServer,
    admin: &mut Admin,
    migrations: &Resolved,
    deadline: Deadline,
) -> Result<String, Error> {
    let name = format!("tk_template_{}", migrations.fingerprint(admin.home()));
    loop {
        if is_finished(admin, &name).await? {
            return Ok(name);
        }
        if admin.try_lock(&name).await? {
            let made = make(server, admin, migrations, &name).await;
            admin.unlock(&name).await?;
            made?;
        } else {
            deadline.pause("another test to migrate the template").await?;
        }
    }
}

/// Whether the template is finished; then notes its use.
async fn is_finished(admin: &mut Admin, name: &str) -> Result<bool, Error> {
    let sql = "
        select coalesce(shobj_description(oid, 'pg_database'), '')
        from pg_database
        where datname = $1 and datistemplate and not datallowconn";
    let Some(row) = admin.rows(sql, name).await?.pop() else {
        return Ok(false);
    };
    let note: String = row.get(0);
    if last_used(&note).is_none_or(|at| at + NOTED_EVERY < now())
        && let Err(error) = note_use(admin, name).await
    {
        // Another test may be writing the same note.
        tracing::debug!(template = name, %error, "could not note the use of a template");
    }
    Ok(true)
}

async fn make(
    server: &TestServer,
    admin: &mut Admin,
    migrations: &Resolved,
    name: &str,
) -> Result<(), Error> {
    if is_finished(admin, name).await? {
        return Ok(());
    }
    sweep(admin).await?;
    admin.drop_by_force(name).await?;
    admin.clone_database(name, "template0").await?;
    if let Err(error) = migrate(server, migrations, name).await {
        admin.drop_by_force(name).await?;
        return Err(error);
    }
    note_use(admin, name).await?;
    let mark = format!("alter database {name} with is_template true allow_connections false");
    admin.run("mark", name, mark).await
}

/// Runs on a connection of its own, since a database with a session in it cannot be copied.
async fn migrate(server: &TestServer, migrations: &Resolved, name: &str) -> Result<(), Error> {
    let options = server.options_of(name)?.application_name(APPLICATION_NAME).disable_statement_logging();
    let mut connection = options.connect().await.map_err(|source| Error::Connect {
        database: name.to_owned(),
        server: server.name(),
        source,
    })?;
    // `run` does the same, but its signature takes `Send` from every future around it.
    let migrated = migrations.migrator().run_direct(None, &mut connection, false).await;
    let migrated = migrated.map_err(|source| Error::Migrate { template: name.to_owned(), source });
    let migrated = match migrated {
        Ok(()) => repeat(&mut connection, migrations).await,
        failed => failed,
    };
    let closed = connection.close().await;
    migrated?;
    closed.map_err(|source| Error::Statement { action: "leave", database: name.to_owned(), source })
}

/// Applies the repeatable files, each in a transaction.
async fn repeat(connection: &mut PgConnection, migrations: &Resolved) -> Result<(), Error> {
    for Repeatable { file, sql } in &migrations.repeatables {
        let failed = |source| Error::Repeatable { file: file.clone(), source };
        // A migration may have changed the session.
        connection.execute(sqlx::raw_sql("discard all")).await.map_err(failed)?;
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.clone()))).await.map_err(failed)?;
    }
    Ok(())
}

async fn note_use(admin: &mut Admin, name: &str) -> Result<(), Error> {
    admin.run("note the use of", name, format!("comment on database {name} is '{NOTE}{}'", now())).await
}

fn last_used(note: &str) -> Option<u64> {
    note.strip_prefix(NOTE)?.parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "it is stored in the template's database")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Drops the templates that were not used for a day.
async fn sweep(admin: &mut Admin) -> Result<(), Error> {
    let sql = "
        select datname::text, shobj_description(oid, 'pg_database')
        from pg_database
        where datistemplate and datname like 'tk\\_template\\_%' and datname <> $1";
    for row in admin.rows(sql, "").await? {
        let (name, note): (String, Option<String>) = (row.get(0), row.get(1));
        if note.as_deref().and_then(last_used).is_none_or(|at| at + STALE_AFTER > now()) {
            continue;
        }
        let unmark = format!("alter database {name} with is_template false");
        let dropped = match admin.run("unmark", &name, unmark).await {
            Ok(()) => admin.run("drop", &name, format!("drop database if exists {name}")).await,
            refused => refused,
        };
        if let Err(error) = dropped {
            // Another user's, or another test drops it at this moment.
            tracing::debug!(template = name, %error, "a stale template could not be dropped");
        }
    }
    Ok(())
}
