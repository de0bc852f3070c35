//! What a column holds, counted by the server, and what re-keying would meet.

use std::collections::BTreeMap;
use std::time::Duration;

use db_core::encryption::{Declared, KeyId};
use db_core::{Config, ConnectRetry};
use serde::Serialize;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use crate::batches::BatchError;
use crate::batches::detect_lost_client;
use crate::session::{self, answer};
use crate::table::quoted;

/// Limit for a statement that reads a whole table.
const LONGEST: Duration = Duration::from_hours(6);

/// The values of a column by what their headers say. No value is unsealed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// The column's logical names.
    pub column: String,
    /// Sealed values, by the id of their key.
    pub keys: BTreeMap<String, u64>,
    /// Values that are not sealed, with the empty ones.
    pub plain: u64,
    /// Empty values.
    pub empty: u64,
    /// Values in a form that is newer than this program.
    pub newer: u64,
    /// Values that begin as sealed ones and are cut off.
    pub cut: u64,
    /// Rows without a value.
    pub null: u64,
}

/// What a statement on a column's table sets off or may not see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Obstacles {
    /// The column's logical names.
    pub column: String,
    /// Triggers that fire for each re-keyed row, or each batch, as `table.trigger`.
    pub triggers: Vec<String>,
    /// Policies of row security, as `table.policy`. Re-keying fails when they would hide rows from its role.
    pub policies: Vec<String>,
    /// Partitions that are foreign tables.
    pub foreign_tables: Vec<String>,
}

impl Counts {
    /// The rows whose value is not sealed under this key.
    #[must_use]
    pub fn other_than(&self, key: KeyId) -> u64 {
        let key = key.to_string();
        let others: u64 = self.keys.iter().filter(|(id, _)| **id != key).map(|(_, rows)| rows).sum();
        others + self.plain + self.newer + self.cut
    }

    /// All rows of the table.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.keys.values().sum::<u64>() + self.plain + self.newer + self.cut + self.null
    }
}

/// Counts the values of each column by the key that they name, on the server. Blind indexes are left out.
///
/// # Errors
///
/// [`BatchError`]: also when row security would hide rows.
pub async fn verify(config: &Config, columns: &[Declared]) -> Result<Vec<Counts>, BatchError> {
    let mut all = Vec::new();
    let mut connection = open(config, "all rows").await?;
    for column in columns.iter().filter(|column| !column.is_index()) {
        let relation = column.relation();
        let stored = quoted(column.stored_column());
        let sql = format!(
            "select {}, octet_length({stored}) = 0, count(*) from {relation} group by 1, 2",
            column.header_sql()
        );
        let counted = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection);
        let rows: Vec<(Option<String>, Option<bool>, i64)> =
            within(counted, "count the values of", &relation).await?;
        let mut counts = Counts { column: column.to_string(), ..Counts::default() };
        for (header, is_empty, rows) in rows {
            let rows = u64::try_from(rows).unwrap_or(0);
            if is_empty == Some(true) {
                counts.empty += rows;
            }
            match header.as_deref() {
                None => counts.null += rows,
                Some("plain") => counts.plain += rows,
                Some("newer") => counts.newer += rows,
                Some("cut") => counts.cut += rows,
                Some(key) => *counts.keys.entry(key.to_owned()).or_default() += rows,
            }
        }
        all.push(counts);
    }
    close(connection).await;
    Ok(all)
}

/// What re-keying of each column would meet. Blind indexes are left out.
///
/// # Errors
///
/// [`BatchError`].
pub async fn obstacles(config: &Config, columns: &[Declared]) -> Result<Vec<Obstacles>, BatchError> {
    let mut all = Vec::new();
    let mut connection = open(config, "the tables").await?;
    for column in columns.iter().filter(|column| !column.is_index()) {
        let relation = column.relation();
        // Bit 16 of `tgtype` is `update`.
        let asked = sqlx::query_as(
            "with recursive tree (oid) as (
               select to_regclass($1)::oid union select i.inhrelid from pg_inherits i join tree on tree.oid = i.inhparent)
             select
               coalesce((select array_agg(t.tgrelid::regclass::text || '.' || t.tgname order by 1) from pg_trigger t
                         where t.tgrelid in (select oid from tree) and not t.tgisinternal and t.tgenabled <> 'D' and t.tgtype & 16 <> 0),
                        '{}'),
               coalesce((select array_agg(p.polrelid::regclass::text || '.' || p.polname order by 1) from pg_policy p
                         where p.polrelid in (select oid from tree)), '{}'),
               coalesce((select array_agg(c.oid::regclass::text order by 1) from pg_class c
                         where c.oid in (select oid from tree) and c.relkind = 'f'), '{}')",
        )
        .bind(&relation)
        .fetch_one(&mut connection);
        let (triggers, policies, foreign_tables) =
            answer(asked).await.map_err(|error| BatchError::from_sqlx("look up", &relation, error))?;
        all.push(Obstacles { column: column.to_string(), triggers, policies, foreign_tables });
    }
    close(connection).await;
    Ok(all)
}

/// The number of rows for which an SQL condition is true.
pub(super) async fn count(config: &Config, relation: &str, condition: &str) -> Result<u64, BatchError> {
    let mut connection = open(config, relation).await?;
    let sql = format!("select count(*) from {relation} where {condition}");
    let counted = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection);
    let rows: i64 = within(counted, "count rows of", relation).await?;
    close(connection).await;
    Ok(u64::try_from(rows).unwrap_or(0))
}

/// A session that sees all rows, or fails.
async fn open(config: &Config, relation: &str) -> Result<PgConnection, BatchError> {
    let mut connection = session::open(config, ConnectRetry::default()).await?;
    detect_lost_client(&mut connection).await;
    let set = sqlx::query(
        "select set_config('row_security', 'off', false), set_config('statement_timeout', $1, false)",
    )
    .bind(LONGEST.as_millis().to_string())
    .execute(&mut connection);
    answer(set).await.map_err(|error| BatchError::from_sqlx("prepare a session for", relation, error))?;
    Ok(connection)
}

async fn within<T>(
    asked: impl Future<Output = Result<T, sqlx::Error>>,
    what: &'static str,
    relation: &str,
) -> Result<T, BatchError> {
    let answered = timeout(LONGEST, asked)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
    answered.map_err(|error| BatchError::from_sqlx(what, relation, error))
}

async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection was lost before it was closed");
    }
}
