//! Where a database stands.

use std::fmt::Write;

use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};

use crate::session::answer;
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
    // By the simple protocol, in which each is one round trip: every start of a service makes them.
    let asked = connection.fetch_one(sqlx::raw_sql("select to_regclass('_sqlx_migrations') is not null"));
    let exists = answer(asked).await.and_then(|row| row.try_get(0)).map_err(Error::database(what))?;
    let applied =
        if exists { answer(applied(connection)).await.map_err(Error::database(what))? } else { Vec::new() };

    let mut all: Vec<Status> = migrations
        .ups()
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

/// Version, description and checksum of each that was applied. The checksum as digits, since the text of a `bytea` depends on
/// `bytea_output`.
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
