//! Where a database stands.

use serde::Serialize;
use sqlx::postgres::PgConnection;

use crate::{Error, Migrations};

/// A migration and its state in one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its version.
    pub version: i64,
    /// Its name, as in the file's name, with spaces for underscores.
    pub description: String,
    /// Its state.
    pub state: State,
}

/// The state of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Not applied.
    Pending,
    /// Applied, and the file is still the same.
    Applied,
    /// Applied, and changed afterwards.
    Changed,
    /// Applied, and not known to this program.
    Unknown,
}

/// Compares a database with what the program has, in order of versions. Takes no lock and changes nothing.
pub(crate) async fn read(
    connection: &mut PgConnection,
    migrations: &Migrations,
) -> Result<Vec<Status>, Error> {
    let what = "read the migration table";
    let (exists,): (bool,) = sqlx::query_as("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::database(what))?;
    let applied: Vec<(i64, String, Vec<u8>)> = if exists {
        sqlx::query_as(
            "select version, description, checksum from _sqlx_migrations where success order by version",
        )
        .fetch_all(connection)
        .await
        .map_err(Error::database(what))?
    } else {
        Vec::new()
    };

    let mut all: Vec<Status> = migrations
        .ups()
        .map(|migration| {
            let state = match applied.iter().find(|(version, ..)| *version == migration.version) {
                None => State::Pending,
                Some((_, _, checksum)) if checksum[..] == migration.checksum[..] => State::Applied,
                Some(_) => State::Changed,
            };
            Status { version: migration.version, description: migration.description.to_string(), state }
        })
        .collect();
    let known: Vec<i64> = all.iter().map(|status| status.version).collect();
    all.extend(
        applied
            .into_iter()
            .filter(|(version, ..)| !known.contains(version))
            .map(|(version, description, _)| Status { version, description, state: State::Unknown }),
    );
    all.sort_by_key(|status| status.version);
    Ok(all)
}
