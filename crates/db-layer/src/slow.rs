//! The slowest statements: by the server's own count where it can be read, else by ours.

use std::time::Duration;

use db_core::sql::{Kind, tokens};
use db_core::{Class, Error, Handle};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::timeout;

use crate::Db;

/// For the server's answer, with the wait for a connection.
const LIMIT: Duration = Duration::from_secs(2);

/// Where `pg_stat_statements` is installed, if it is.
const SCHEMA: &str = "select pg_catalog.quote_ident(n.nspname::text)
    from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
    where e.extname = 'pg_stat_statements'";

/// The slowest statements.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SlowQueries {
    /// Where the counts come from.
    pub source: SlowSource,
    /// The statements, those that took longest in all first.
    pub queries: Vec<SlowQuery>,
}

/// Where counts of statements come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlowSource {
    /// The server's extension `pg_stat_statements`: what all sessions of our role ran in our database. Commands other than `SELECT`,
    /// `INSERT`, `UPDATE`, `DELETE`, `MERGE`, `VALUES` and `TABLE` are left out, since the extension shows the passwords in them.
    Server,
    /// This process: what its pools ran since [`StatementCounts::since`](crate::StatementCounts::since).
    Process {
        /// Why the server's count is not shown.
        why: NoServerCount,
    },
}

/// Why the server's count is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoServerCount {
    /// The extension is not installed in the database: `create extension pg_stat_statements`.
    NotInstalled,
    /// The server does not load the extension's library, or the role may not read it. The log has the server's answer.
    NotReadable,
    /// There was no connection, or no answer, within 2 s. The log has the reason if it was not the time.
    Late,
}

impl std::fmt::Display for NoServerCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotInstalled => "the extension pg_stat_statements is not installed in this database",
            Self::NotReadable => "pg_stat_statements cannot be read: the log has the server's answer",
            Self::Late => "there was no connection, or no answer of the server, within 2 s",
        })
    }
}

/// A statement, and what it has cost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SlowQuery {
    /// Its text on one line, without literals.
    pub text: String,
    /// How often it ran.
    pub calls: u64,
    /// How long it took in all.
    pub total: Duration,
    /// How long it took on average.
    pub mean: Duration,
    /// How long it took at most.
    pub max: Duration,
    /// Rows returned or affected.
    pub rows: u64,
}

impl Db {
    /// The statements that took longest in all, `most` at most: by `pg_stat_statements` where it is installed and readable, else as this
    /// process has counted them. Asks the database on a connection of the pool for background work, for 2 s at most.
    ///
    /// Cancel safe.
    pub async fn slow_queries(&self, most: u32) -> SlowQueries {
        let handle = self.backend().named("db-layer/slow-queries").acquire_timeout(LIMIT);
        let why = match timeout(LIMIT, of_server(&handle, most)).await {
            Ok(Ok(Some(queries))) => return SlowQueries { source: SlowSource::Server, queries },
            Ok(Ok(None)) => NoServerCount::NotInstalled,
            Err(_) => NoServerCount::Late,
            Ok(Err(error)) => {
                tracing::info!(%error, "pg_stat_statements cannot be read");
                let is_late = matches!(error, Error::Acquire(_))
                    || matches!(error.class(), Class::Lost | Class::NotReached | Class::TimedOut);
                if is_late { NoServerCount::Late } else { NoServerCount::NotReadable }
            }
        };
        let counts = self.statement_counts().map(|counts| counts.statements).unwrap_or_default();
        let queries = counts
            .into_iter()
            .take(most as usize)
            .map(|count| SlowQuery {
                mean: count.mean(),
                text: count.text,
                calls: count.calls,
                total: count.total,
                max: count.max,
                rows: count.rows,
            })
            .collect();
        SlowQueries { source: SlowSource::Process { why }, queries }
    }
}

/// What the extension has counted; `None` if it is not installed.
async fn of_server(handle: &Handle, most: u32) -> Result<Option<Vec<SlowQuery>>, Error> {
    let mut conn = handle.acquire().await?;
    let schema: Option<String> = sqlx::query_scalar(SCHEMA).fetch_optional(&mut conn).await?;
    let Some(schema) = schema else { return Ok(None) };
    // A name that the server has quoted. More than are shown, since utility statements are left out here.
    let sql = format!(
        "select query, calls, total_exec_time, mean_exec_time, max_exec_time, rows from {schema}.pg_stat_statements
         where dbid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
           and userid = (select oid from pg_catalog.pg_roles where rolname = current_user) and query is not null
         order by total_exec_time desc limit {}",
        u64::from(most) * 4 + 100
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(&mut conn).await?;
    let queries = rows.iter().filter_map(|row| query(row).transpose()).take(most as usize);
    Ok(Some(queries.collect::<Result<_, _>>()?))
}

/// A row of the extension; `None` for a utility statement.
fn query(row: &PgRow) -> Result<Option<SlowQuery>, sqlx::Error> {
    let text: String = row.try_get("query")?;
    if !is_query(&text) {
        return Ok(None);
    }
    let count = |column| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
    let time = |column| {
        row.try_get::<f64, _>(column)
            .map(|ms| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX))
    };
    Ok(Some(SlowQuery {
        text: db_core::sql::normalize(&text),
        calls: count("calls")?,
        total: time("total_exec_time")?,
        mean: time("mean_exec_time")?,
        max: time("max_exec_time")?,
        rows: count("rows")?,
    }))
}

/// Whether a text is a query, whose literals the extension has replaced.
fn is_query(text: &str) -> bool {
    let first = tokens(text).find(|token| token.kind != Kind::Blank && token.text != "(");
    first.is_some_and(|token| {
        token.is_any(&["select", "insert", "update", "delete", "merge", "with", "values", "table"])
    })
}

#[cfg(test)]
mod tests {
    use super::is_query;

    #[test]
    fn utility_statements_are_no_queries() {
        for query in
            ["select $1", " /* of */ WITH a as (select $1) table a", "((values ($1)))", "merge into t"]
        {
            assert!(is_query(query), "{query}");
        }
        for other in ["alter role app password 'x'", "-- select\ncreate user a", "", "do $$select$$", "("] {
            assert!(!is_query(other), "{other}");
        }
    }
}
