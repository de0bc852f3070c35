//! The migrations on record in a database, compared with the files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use sqlx::migrate::Migration;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::history::{IS_APPLIED, NO_COLUMN, has_code};
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
    /// Whether this role may not read what was applied of repeatable files.
    pub(crate) hides_repeated: bool,
    /// The digest of what was applied last of each repeatable file, in hex digits, by its name, unless a version was reverted since.
    pub(crate) repeated: HashMap<String, String>,
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
    let (mut applied, repeated) = match table {
        Some(table) => answer(applied(connection, table)).await.map_err(Error::database(WHAT))?,
        None => Default::default(),
    };

    let mut not_in_history = Vec::new();
    let mut all: Vec<Status> = migrations
        .map(|migration| {
            let state = match applied.remove(&migration.version) {
                None => State::Pending,
                Some(applied) if applied.is_under_way => State::UnderWay,
                Some(applied) if !applied.success => State::Dirty,
                Some(applied) if applied.checksum == hex(&migration.checksum) => {
                    if applied.digest.is_none() {
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
    let hides_repeated = table.is_some_and(|table| table.history.exists && !table.history.is_readable());
    Ok(Look { statuses: all, not_in_history, may_adopt, hides_repeated, repeated })
}

const WHAT: &str = "read the migration table";

/// A row of the table.
struct Applied {
    description: String,
    success: bool,
    is_under_way: bool,
    /// As hex digits, since the text of a `bytea` depends on `bytea_output`.
    checksum: String,
    /// What the history has of the file, as hex digits, if its last entry has it as applied under this checksum.
    digest: Option<String>,
}

async fn applied(
    connection: &mut PgConnection,
    table: &Table,
) -> Result<(BTreeMap<i64, Applied>, HashMap<String, String>), sqlx::Error> {
    // In one look, since a migration may end meanwhile.
    let is_under_way = if table.has_progress {
        format!("not success and version in (select version from {})", table.progress)
    } else {
        "false".to_owned()
    };
    let records = format!(
        "select version, description, success, encode(checksum, 'hex'), {is_under_way} from {} order by version;",
        table.name
    );
    // In one message, so that it takes no round trip of its own; two statements, since a join would take longer to plan than to run.
    let history = format!(
        "select version, id, {IS_APPLIED}, encode(checksum, 'hex'), encode(digest, 'hex'),
           case when action = 'repeat' then description end from {} as h
         where h.succeeded",
        table.history.name
    );
    let with_history = table.history.is_readable().then(|| format!("{records}{history}"));
    let mut rows = match with_history {
        Some(sql) => match connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await {
            // A table of somebody else's.
            Err(error) if has_code(&error, NO_COLUMN) => None,
            rows => Some(rows?),
        },
        None => None,
    };
    if rows.is_none() {
        rows = Some(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(records))).await?);
    }
    let (records, entries): (Vec<PgRow>, Vec<PgRow>) =
        rows.into_iter().flatten().partition(|row| row.len() == 5);

    let mut last: HashMap<i64, (i64, &PgRow)> = HashMap::new();
    let mut last_repeated: HashMap<String, (i64, &PgRow)> = HashMap::new();
    for row in &entries {
        let (version, id) = (row.try_get(0)?, row.try_get(1)?);
        let newest = match row.try_get(5)? {
            Some(name) => last_repeated.entry(name).or_insert((id, row)),
            None => last.entry(version).or_insert((id, row)),
        };
        if newest.0 < id {
            *newest = (id, row);
        }
    }
    let applied = |row: &PgRow| {
        let version = row.try_get(0)?;
        let [description, checksum]: [String; 2] = [row.try_get(1)?, row.try_get(3)?];
        let [success, is_under_way] = [row.try_get(2)?, row.try_get(4)?];
        let digest = match last.get(&version) {
            Some((_, entry))
                if entry.try_get(2)? && entry.try_get::<Option<&str>, _>(3)? == Some(&checksum) =>
            {
                entry.try_get(4)?
            }
            _ => None,
        };
        Ok((version, Applied { description, success, is_under_way, checksum, digest }))
    };
    // The way back of a version may have dropped what a repeatable file makes.
    let mut reverted = 0;
    for row in &entries {
        if !row.try_get::<bool, _>(2)? {
            reverted = reverted.max(row.try_get(1)?);
        }
    }
    let repeated = last_repeated.into_iter().filter(|(_, (id, _))| *id > reverted);
    let repeated = repeated.map(|(name, (_, row))| Ok((name, row.try_get(4)?)));
    Ok((
        records.iter().map(applied).collect::<Result<_, sqlx::Error>>()?,
        repeated.collect::<Result<_, sqlx::Error>>()?,
    ))
}
