//! What the catalog tells of a statement that began outside of a transaction and was cut off.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::Error;
use crate::session::answer;
use crate::statements::CutOff;
use crate::table::literal;

/// The outcome of a statement that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is done.
    Done,
    /// It is not done, and nothing is left of it.
    Undone,
    /// The catalog does not tell.
    Undecided,
}

/// A query for the indexes that were there before the statement: only others are its own.
pub(crate) fn indexes_before(cut_off: &CutOff) -> String {
    match cut_off {
        CutOff::CreateIndex { table, .. } => {
            format!(
                "select indexrelid::bigint from pg_index where indrelid = to_regclass({})",
                literal(table)
            )
        }
        CutOff::Reindex => "select indexrelid::bigint from pg_index where not indisvalid".to_owned(),
        _ => "select 0::bigint where false".to_owned(),
    }
}

/// An invalid index that has the name of the one to be made. `if not exists` would leave it as it is.
pub(crate) async fn obstacle(
    connection: &mut PgConnection,
    cut_off: &CutOff,
) -> Result<Option<String>, Error> {
    let CutOff::CreateIndex { name: Some(name), table } = cut_off else { return Ok(None) };
    let sql = format!(
        "select i.indexrelid::regclass::text
         from pg_index i join pg_class c on c.oid = i.indexrelid
         where i.indrelid = to_regclass({table}) and not i.indisvalid and c.relname = {name}",
        table = literal(table),
        name = relname(name)
    );
    let row = answer(connection.fetch_optional(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let name = row.and_then(|row| row.map(|row| row.try_get(0)).transpose());
    name.map_err(Error::database("look for an invalid index"))
}

/// Looks at what the statement has done, and drops the invalid indexes that it left. `before`: see [`indexes_before`].
pub(crate) async fn settle(
    connection: &mut PgConnection,
    cut_off: &CutOff,
    before: &[i64],
) -> Result<Settled, Error> {
    let settled = match cut_off {
        CutOff::CreateIndex { name, table } => {
            let named = match name {
                Some(name) => format!("c.relname = {}", relname(name)),
                None => "true".to_owned(),
            };
            let new = format!("i.indrelid = to_regclass({}) and {named}", literal(table));
            let found = new_indexes(connection, &new, before).await;
            match found {
                Ok(found) if found.iter().any(|index| index.is_valid) => Ok(Settled::Done),
                Ok(found) => drop_all(connection, found).await,
                Err(error) => Err(error),
            }
        }
        CutOff::Reindex => {
            // PostgreSQL's manual, REINDEX, "Rebuilding Indexes Concurrently".
            let new = "not i.indisvalid and c.relname ~ '_cc(new|old)[0-9]*$'";
            match new_indexes(connection, new, before).await {
                Ok(found) => drop_all(connection, found).await,
                Err(error) => Err(error),
            }
        }
        CutOff::DropIndex { name } => {
            let sql = format!("select to_regclass({}) is null", literal(name));
            flag(connection, sql).await.map(|is_gone| match is_gone {
                Some(true) => Settled::Done,
                _ => Settled::Undone,
            })
        }
        CutOff::Detach { table, partition } => {
            let sql = format!(
                "select inhdetachpending from pg_inherits where inhrelid = to_regclass({}) and inhparent = to_regclass({})",
                literal(partition),
                literal(table)
            );
            match flag(connection, sql).await {
                Ok(None) => Ok(Settled::Done),
                Ok(Some(false)) => Ok(Settled::Undone),
                Ok(Some(true)) => {
                    let finalize = format!("alter table {table} detach partition {partition} finalize");
                    let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(finalize))).await;
                    done.map(|_| Settled::Done)
                }
                Err(error) => Err(error),
            }
        }
        CutOff::Repeat => Ok(Settled::Undone),
        CutOff::Decide | CutOff::DecideAlways => Ok(Settled::Undecided),
    };
    settled.map_err(Error::database("look at what a statement that was cut off has done"))
}

struct Index {
    name: String,
    is_valid: bool,
}

/// The indexes that match and were not there before. One that somebody builds now is not ours.
async fn new_indexes(
    connection: &mut PgConnection,
    condition: &str,
    before: &[i64],
) -> Result<Vec<Index>, sqlx::Error> {
    let before = before.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let sql = format!(
        "select quote_ident(n.nspname) || '.' || quote_ident(c.relname), i.indisvalid
         from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
         where {condition} and i.indexrelid::bigint <> all ('{{{before}}}')
           and not exists (select from pg_stat_progress_create_index p where p.datname = current_database() and p.relid = i.indrelid)"
    );
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await?;
    let index = |row: &PgRow| Ok(Index { name: row.try_get(0)?, is_valid: row.try_get(1)? });
    rows.iter().map(index).collect()
}

/// An index that cannot be dropped now is an error, and the next run looks again.
async fn drop_all(connection: &mut PgConnection, indexes: Vec<Index>) -> Result<Settled, sqlx::Error> {
    for Index { name, .. } in indexes {
        tracing::info!(index = name, "an index that was cut off is dropped, to be built again");
        let sql = format!("drop index concurrently if exists {name}");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    }
    Ok(Settled::Undone)
}

async fn flag(connection: &mut PgConnection, sql: String) -> Result<Option<bool>, sqlx::Error> {
    let row = answer(connection.fetch_optional(sqlx::raw_sql(AssertSqlSafe(sql)))).await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// The name in the catalog of a name in SQL.
fn relname(name: &str) -> String {
    format!("(parse_ident({}))[1]::name", literal(name))
}
