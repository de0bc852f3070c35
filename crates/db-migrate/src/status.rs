//! The migrations on record in a database, compared with the files.

use std::fmt::Write;

use serde::Serialize;
use sqlx::migrate::Migration;
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};

use crate::Error;
use crate::session::answer;

/// A migration and its state in one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its version.
    pub version: i64,
    /// The name in its file's name, with spaces for underscores.
    pub description: String,
    /// Its state.
    pub state: State,
}

/// The state of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Not applied yet.
    Pending,
    /// Applied, and the file is still the same.
    Applied,
    /// Applied, but the file was changed afterwards.
    Changed,
    /// Applied, but this program has no such migration.
    Unknown,
}

/// Compares a database with the program's migrations, in order of versions. Takes no lock and changes nothing.
pub(crate) async fn read(
    connection: &mut PgConnection,
    migrations: impl Iterator<Item = &Migration>,
) -> Result<Vec<Status>, Error> {
    let what = "read the migration table";
    // The simple protocol needs one round trip for each query, which every start of a service pays.
    let asked = connection.fetch_one(sqlx::raw_sql("select to_regclass('_sqlx_migrations') is not null"));
    let exists = answer(asked).await.and_then(|row| row.try_get(0)).map_err(Error::database(what))?;
    let applied =
        if exists { answer(applied(connection)).await.map_err(Error::database(what))? } else { Vec::new() };

    let mut all: Vec<Status> = migrations
        .map(|migration| {
            let state = match applied.iter().find(|(version, ..)| *version == migration.version) {
                None => State::Pending,
                Some((_, _, checksum)) if *checksum == hex(&migration.checksum) => State::Applied,
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

/// Version, description and checksum of each applied migration. The checksum is read as hex digits, since the text of a `bytea`
/// depends on `bytea_output`.
async fn applied(connection: &mut PgConnection) -> Result<Vec<(i64, String, String)>, sqlx::Error> {
    let rows = connection
        .fetch_all(sqlx::raw_sql(
            "select version, description, encode(checksum, 'hex')
             from _sqlx_migrations
             where success
             order by version",
        ))
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}
