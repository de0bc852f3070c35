//! The schema of a database as text, and what differs between two.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use serde::Serialize;
use similar::TextDiff;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::time::timeout;

use crate::Error;
use crate::session::answer;
use crate::table::{Table, literal, quoted};

/// Reads what users have made. `/*own*/` stands for the tables of this crate.
const SCHEMA: &str = include_str!("schema.sql");

/// What the text of a definition depends on, and limits: to write a definition, the server waits for those who change the table. With no other
/// schema in the path, the server qualifies all names.
const SETTINGS: &str = "set local search_path to pg_catalog; set local jit to off; set local timezone to 'UTC'; set local datestyle to 'ISO';
    set local intervalstyle to 'postgres'; set local extra_float_digits to 3; set local bytea_output to 'hex';
    set local quote_all_identifiers to off; set local standard_conforming_strings to on;
    set local lock_timeout to '5s'; set local statement_timeout to '60s';";

/// For an answer that does not come although the server's own limit is over: the link is dead.
const LIMIT: Duration = Duration::from_secs(70);

/// The objects of a database, by kind and name, and how they are defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schema(BTreeMap<String, String>);

/// Whether owners and privileges belong to a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    Count,
    /// Between clusters, roles differ.
    DoNotCount,
}

/// An object that is not as it should be. `Display` shows lines with `-` for what is missing and `+` for what is too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Its kind and name, such as `index public.shop_name`.
    pub object: String,
    /// How it should be; none if it should not be there.
    pub expected: Option<String>,
    /// How it is; none if it is not there.
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, expected, found } = self;
        match (expected, found) {
            (None, _) => write!(f, "{object} is there and should not be"),
            (_, None) => write!(f, "{object} is missing"),
            (Some(expected), Some(found)) => {
                write!(f, "{object} differs:")?;
                let diff = TextDiff::from_lines(expected, found);
                let unified = diff.unified_diff().context_radius(0).to_string();
                unified
                    .lines()
                    .filter(|line| !line.starts_with("@@"))
                    .try_for_each(|line| write!(f, "\n    {line}"))
            }
        }
    }
}

impl Schema {
    /// Reads it, in a transaction that changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub(super) async fn read(
        connection: &mut PgConnection,
        own: &[i64],
        rights: Rights,
    ) -> Result<Self, Error> {
        let own = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let query = SCHEMA.replace("/*own*/", &own);
        let sql = format!("begin read only; {SETTINGS} {query}; commit");
        let asked = timeout(LIMIT, connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
        let rows = asked.unwrap_or_else(|_| Err(sqlx::Error::Io(ErrorKind::TimedOut.into())));
        let objects = rows.and_then(|rows| {
            let object = |row: sqlx::postgres::PgRow| {
                let (kind, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                let (definition, granted): (String, String) = (row.try_get(2)?, row.try_get(3)?);
                let text = match rights {
                    Rights::Count if !granted.is_empty() => format!("{definition}\n{granted}\n"),
                    _ => format!("{definition}\n"),
                };
                Ok((format!("{kind} {name}"), text))
            };
            rows.into_iter().map(object).collect()
        });
        Ok(Self(objects.map_err(Error::database("read the schema"))?))
    }

    /// Without an extension.
    pub(super) fn without_extension(&mut self, name: &str) {
        let is_of = |object: &str| {
            let object = object.strip_prefix("comment ").unwrap_or(object);
            object.strip_prefix("extension ").is_some_and(|it| it == name || it == quoted(name))
        };
        self.0.retain(|object, _| !is_of(object));
    }

    /// What differs in `found`.
    pub(super) fn differences(&self, found: &Self) -> Vec<Difference> {
        let names = self.0.keys().chain(found.0.keys().filter(|name| !self.0.contains_key(*name)));
        let difference = |name: &String| {
            let (expected, found) = (self.0.get(name), found.0.get(name));
            (expected != found).then(|| Difference {
                object: name.clone(),
                expected: expected.cloned(),
                found: found.cloned(),
            })
        };
        let mut differences: Vec<_> = names.filter_map(difference).collect();
        differences.sort_by(|one, other| one.object.cmp(&other.object));
        differences
    }
}

/// The ids of the tables that migrations are recorded in, and of others that do not count.
pub(super) async fn own_tables(
    connection: &mut PgConnection,
    table: &str,
    ignored: &[String],
) -> Result<Vec<i64>, Error> {
    let table = Table::find(connection, table).await?;
    let mut names: Vec<&str> = ignored.iter().map(String::as_str).collect();
    if let Some(table) = &table {
        names.extend([table.progress.as_str(), &table.history.name]);
    }
    let names: Vec<String> =
        names.into_iter().map(|name| format!("to_regclass({})", literal(name))).collect();
    let sql = format!(
        "select oid::int8 from unnest(array[{}]::regclass[]) as beside (oid) where oid is not null",
        names.join(", ")
    );
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let beside = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>());
    let mut own = beside.map_err(Error::database("look for the tables beside the migration table"))?;
    own.extend(table.map(|table| table.oid));
    Ok(own)
}
