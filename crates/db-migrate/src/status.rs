//! The migrations on record in a database, compared with the files.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::migrate::Migration;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::history::IS_APPLIED;
use crate::session::answer;
use crate::table::{Table, hex};
use crate::{Error, contents};

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
    /// Applied, and only comments and formatting of the file were changed afterwards. sqlx would refuse it, and so would a program that was
    /// built before.
    Reformatted,
    /// Applied, but the file was changed afterwards.
    Changed,
    /// Applied, but this program has no such migration.
    Unknown,
    /// Begun outside of a transaction and not ended: the next run goes on with it.
    UnderWay,
    /// On record as begun and not ended, by another migrator that was cut off.
    Dirty,
}

impl State {
    /// Whether the migration is applied, and its file says the same.
    #[must_use]
    pub fn is_applied(self) -> bool {
        matches!(self, Self::Applied | Self::Reformatted)
    }
}

impl Status {
    /// Whether it is applied by a run up to a version, or to the newest one.
    pub(crate) fn is_to_do(&self, to: Option<i64>) -> bool {
        // One that another migrator has begun may end while the lock is waited for.
        let is_open = matches!(self.state, State::Pending | State::UnderWay | State::Dirty);
        is_open && to.is_none_or(|to| self.version <= to)
    }

    /// Whether it is reverted by a run down to a version.
    pub(crate) fn is_to_revert(&self, target: i64) -> bool {
        self.state != State::Pending && self.version > target
    }
}

/// A look at the records.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) statuses: Vec<Status>,
    /// The versions that are applied, with the file's checksum, and are not in the history.
    pub(crate) not_in_history: Vec<i64>,
    /// Whether this role may put them there.
    pub(crate) may_adopt: bool,
}

/// The versions that are applied.
pub(crate) fn applied_versions(statuses: &[Status]) -> BTreeSet<i64> {
    statuses.iter().filter(|status| status.state.is_applied()).map(|status| status.version).collect()
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
) -> Result<Look, Error> {
    let mut applied = match table {
        Some(table) => answer(applied(connection, table)).await.map_err(Error::database(WHAT))?,
        None => BTreeMap::new(),
    };

    let mut not_in_history = Vec::new();
    let mut all: Vec<Status> = migrations
        .map(|migration| {
            let state = match applied.remove(&migration.version) {
                None => State::Pending,
                Some(applied) if applied.is_under_way => State::UnderWay,
                Some(applied) if !applied.success => State::Dirty,
                Some(applied) if applied.checksum == hex(&migration.checksum) => {
                    if applied.digest.is_none() || !applied.is_last {
                        not_in_history.push(migration.version);
                    }
                    State::Applied
                }
                Some(Applied { digest: Some(digest), .. }) if digest == hex(&contents::digest(migration)) => {
                    State::Reformatted
                }
                Some(_) => State::Changed,
            };
            Status { version: migration.version, description: migration.description.to_string(), state }
        })
        .collect();
    let unknown = applied.into_iter();
    all.extend(unknown.map(|(version, applied)| Status {
        version,
        state: match applied {
            Applied { is_under_way: true, .. } => State::UnderWay,
            Applied { success: false, .. } => State::Dirty,
            _ => State::Unknown,
        },
        description: applied.description,
    }));
    all.sort_by_key(|status| status.version);
    let may_adopt = table.is_some_and(|table| table.history.can_be_written);
    Ok(Look { statuses: all, not_in_history, may_adopt })
}

const WHAT: &str = "read the migration table";

/// A row of the table.
struct Applied {
    description: String,
    success: bool,
    is_under_way: bool,
    /// As hex digits, since the text of a `bytea` depends on `bytea_output`.
    checksum: String,
    /// What the history has of the file with this checksum, as hex digits.
    digest: Option<String>,
    /// Whether the history's last entry has it as applied.
    is_last: bool,
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
    let (known, history) = if table.history.is_readable() {
        let history = format!(
            "left join lateral (
                 select digest from {name} as h
                 where h.version = recorded.version and h.checksum = recorded.checksum and h.succeeded and h.digest is not null
                 order by id desc limit 1
             ) as known on true
             left join lateral (
                 select {IS_APPLIED} as is_applied from {name} as h
                 where h.version = recorded.version and h.succeeded order by id desc limit 1
             ) as last on true",
            name = table.history.name
        );
        ("encode(known.digest, 'hex'), coalesce(last.is_applied, false)", history)
    } else {
        ("null::text, false", String::new())
    };
    let sql = format!(
        "select version, description, success, encode(checksum, 'hex'), {is_under_way}, {known}
         from {} as recorded {history}
         order by version",
        table.name
    );
    let rows = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let applied = |row: &PgRow| {
        let [description, checksum] = [row.try_get(1)?, row.try_get(3)?];
        let [success, is_under_way] = [row.try_get(2)?, row.try_get(4)?];
        let (digest, is_last) = (row.try_get(5)?, row.try_get(6)?);
        Ok((row.try_get(0)?, Applied { description, success, is_under_way, checksum, digest, is_last }))
    };
    rows.iter().map(applied).collect()
}
