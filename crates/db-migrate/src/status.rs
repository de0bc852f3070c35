//! The migrations on record in a database, compared with the files.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::migrate::Migration;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::Error;
use crate::session::answer;
use crate::table::{Table, hex};

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
    /// Begun outside of a transaction and not ended: the next run goes on with it.
    UnderWay,
    /// On record as begun and not ended, by another migrator that was cut off.
    Dirty,
}

/// The versions in this state.
pub(crate) fn versions(statuses: &[Status], state: State) -> BTreeSet<i64> {
    statuses.iter().filter(|status| status.state == state).map(|status| status.version).collect()
}

/// Compares the migrations on record with the program's, in order of versions. Takes no lock and changes nothing.
///
/// # Errors
///
/// [`Error::Database`].
pub(crate) async fn read(
    connection: &mut PgConnection,
    table: Option<&Table>,
    migrations: impl Iterator<Item = &Migration>,
) -> Result<Vec<Status>, Error> {
    let mut applied = match table {
        Some(table) => answer(applied(connection, table)).await.map_err(Error::database(WHAT))?,
        None => BTreeMap::new(),
    };

    let mut all: Vec<Status> = migrations
        .map(|migration| {
            let state = match applied.remove(&migration.version) {
                None => State::Pending,
                Some(applied) if applied.is_under_way => State::UnderWay,
                Some(applied) if !applied.success => State::Dirty,
                Some(applied) if applied.checksum == hex(&migration.checksum) => State::Applied,
                Some(_) => State::Changed,
            };
            Status { version: migration.version, description: migration.description.to_string(), state }
        })
        .collect();
    let unknown = applied.into_iter();
    all.extend(unknown.map(|(version, applied)| Status {
        version,
        description: applied.description,
        state: State::Unknown,
    }));
    all.sort_by_key(|status| status.version);
    Ok(all)
}

const WHAT: &str = "read the migration table";

/// A row of the table.
struct Applied {
    description: String,
    success: bool,
    is_under_way: bool,
    /// As hex digits, since the text of a `bytea` depends on `bytea_output`.
    checksum: String,
}

async fn applied(
    connection: &mut PgConnection,
    table: &Table,
) -> Result<BTreeMap<i64, Applied>, sqlx::Error> {
    // In one look, since a migration may end meanwhile.
    let is_under_way = if table.has_progress {
        format!("not success and version in (select version from {})", table.progress)
    } else {
        "false".to_owned()
    };
    let sql = format!(
        "select version, description, success, encode(checksum, 'hex'), {is_under_way}
         from {}
         order by version",
        table.name
    );
    let rows = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let applied = |row: &PgRow| {
        let [description, checksum] = [row.try_get(1)?, row.try_get(3)?];
        let [success, is_under_way] = [row.try_get(2)?, row.try_get(4)?];
        Ok((row.try_get(0)?, Applied { description, success, is_under_way, checksum }))
    };
    rows.iter().map(applied).collect()
}
