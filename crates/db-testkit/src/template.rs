//! One migrated database, to be copied for each test.
//!
//! Its name is a digest of the migrations, so that changed ones make another. Only a finished one is marked as a template
//! and closed to connections; whoever finds one without the mark, holding its lock, knows that its maker died.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::{ConnectOptions, Connection, Row};

use crate::admin::Admin;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::migrations::Resolved;
use crate::server::{OURSELVES, TestServer};

/// Not noted more often: each note is a write.
const NOTED_EVERY: u64 = 60 * 60;

/// What nobody used for so long belongs to migrations of the past.
const STALE_AFTER: u64 = 24 * 60 * 60;

/// What stands before the time in the database's comment.
const NOTE: &str = "db-testkit template, last used at ";

/// Finds the template for these migrations, or makes it, or waits until another test has made it.
///
/// The lock is tried, not waited for: a waiting statement would hold a snapshot, and that stops `CREATE INDEX CONCURRENTLY`
/// in a migration for good.
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

/// Looks, and notes that it is used.
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
        // Another test is writing the same note.
        tracing::debug!(template = name, %error, "the use of a template was not noted");
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

/// On a connection of its own: a session in a database keeps it from being copied.
async fn migrate(server: &TestServer, migrations: &Resolved, name: &str) -> Result<(), Error> {
    let options = server.options_of(name)?.application_name(OURSELVES).disable_statement_logging();
    let mut connection = options.connect().await.map_err(|source| Error::Connect {
        database: name.to_owned(),
        server: server.name(),
        source,
    })?;
    // `run` is the same, but for a signature that makes every future around it lose `Send`.
    let migrated = migrations.migrator().run_direct(None, &mut connection, false).await;
    let closed = connection.close().await;
    migrated.map_err(|source| Error::Migrate { template: name.to_owned(), source })?;
    closed.map_err(|source| Error::Statement { action: "leave", database: name.to_owned(), source })
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

/// Drops the templates that nobody used for a day.
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
            // Somebody else's, or another test drops it at this moment.
            tracing::debug!(template = name, %error, "a stale template stays");
        }
    }
    Ok(())
}
