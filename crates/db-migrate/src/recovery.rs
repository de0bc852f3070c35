//! What the catalog tells of a statement that began outside of a transaction and was cut off.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::Error;
use crate::session::answer;
use crate::statements::{CutOff, Reindexed};
use crate::table::literal;

/// The outcome of a statement that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is done.
    Done,
    /// It is not done, and nothing is left of it.
    Undone,
    /// It is done when this statement is.
    DoneBy(String),
    /// The catalog does not tell.
    Undecided,
}

/// The ids of what was there before the statement, as far as its rule looks at it. Asked in the session as the statement has it: names depend on
/// its role and search path.
pub(crate) async fn before(connection: &mut PgConnection, cut_off: &CutOff) -> Result<Vec<i64>, Error> {
    let sql = match cut_off {
        CutOff::CreateIndex { table, .. } => {
            format!(
                "select indexrelid::bigint from pg_index where indrelid = to_regclass({})",
                literal(table)
            )
        }
        CutOff::Reindex { .. } => "select indexrelid::bigint from pg_index where not indisvalid".to_owned(),
        CutOff::DropIndex { name } => {
            format!("select oid::bigint from pg_class where oid = to_regclass({})", literal(name))
        }
        CutOff::Detach { table, partition } => format!(
            "select inhrelid::bigint from pg_inherits where inhrelid = to_regclass({}) and inhparent = to_regclass({})",
            literal(partition),
            literal(table)
        ),
        CutOff::Repeat | CutOff::Decide | CutOff::DecideAlways => return Ok(Vec::new()),
    };
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let ids = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
    ids.map_err(Error::database("look at what is there before a statement"))
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

/// Looks at what the statement has done, and drops the invalid indexes that it left. `before`: see [`before`].
pub(crate) async fn settle(
    connection: &mut PgConnection,
    cut_off: &CutOff,
    before: &[i64],
) -> Result<Settled, Error> {
    let settled = match cut_off {
        CutOff::CreateIndex { name, table } => index(connection, name.as_deref(), table, before).await,
        CutOff::Reindex { of } => reindexed(connection, of.as_ref(), before).await,
        CutOff::DropIndex { .. } => dropped(connection, before).await,
        CutOff::Detach { table, partition } => detached(connection, table, partition, before).await,
        CutOff::Repeat => Ok(Settled::Undone),
        CutOff::Decide | CutOff::DecideAlways => Ok(Settled::Undecided),
    };
    settled.map_err(Error::database("look at what a statement that was cut off has done"))
}

async fn index(
    connection: &mut PgConnection,
    name: Option<&str>,
    table: &str,
    before: &[i64],
) -> Result<Settled, sqlx::Error> {
    let named = name.map_or_else(|| "true".to_owned(), |name| format!("c.relname = {}", relname(name)));
    let new = format!("i.indrelid = to_regclass({}) and {named}", literal(table));
    let mut found = new_indexes(connection, &new, before).await?;
    match (found.pop(), &*found) {
        (None, _) => Ok(Settled::Undone),
        (Some(index), []) if index.is_valid => Ok(Settled::Done),
        (Some(index), []) => drop_all(connection, vec![index]).await,
        // Without a name, nobody knows which one it has made.
        _ => Ok(Settled::Undecided),
    }
}

/// PostgreSQL's manual, REINDEX, "Rebuilding Indexes Concurrently".
async fn reindexed(
    connection: &mut PgConnection,
    of: Option<&Reindexed>,
    before: &[i64],
) -> Result<Settled, sqlx::Error> {
    let tables = match of {
        Some(Reindexed::Table(name)) => {
            let all = tree(name);
            format!("i.indrelid in ({all} union select reltoastrelid from pg_class where oid in ({all}))")
        }
        Some(Reindexed::Index(name)) => {
            format!("i.indrelid in (select indrelid from pg_index where indexrelid in ({}))", tree(name))
        }
        None => "true".to_owned(),
    };
    let new = format!("not i.indisvalid and c.relname ~ '_cc(new|old)[0-9]*$' and {tables}");
    let found = new_indexes(connection, &new, before).await?;
    drop_all(connection, found).await
}

/// A query for a relation and its partitions.
fn tree(name: &str) -> String {
    let name = literal(name);
    format!(
        "select to_regclass({name})::oid union select relid::oid from pg_partition_tree(to_regclass({name}))"
    )
}

async fn dropped(connection: &mut PgConnection, before: &[i64]) -> Result<Settled, sqlx::Error> {
    let [index] = before else { return Ok(Settled::Undone) };
    let sql = format!("select count(*) = 0 from pg_class where oid = {index}");
    Ok(if flag(connection, sql).await? == Some(true) { Settled::Done } else { Settled::Undone })
}

async fn detached(
    connection: &mut PgConnection,
    table: &str,
    partition: &str,
    before: &[i64],
) -> Result<Settled, sqlx::Error> {
    let [id] = before else { return Ok(Settled::Undone) };
    let sql = format!(
        "select inhdetachpending from pg_inherits where inhrelid = {id} and inhparent = to_regclass({})",
        literal(table)
    );
    Ok(match flag(connection, sql).await? {
        None => Settled::Done,
        Some(false) => Settled::Undone,
        Some(true) => Settled::DoneBy(format!("alter table {table} detach partition {partition} finalize")),
    })
}

struct Index {
    name: String,
    is_valid: bool,
    /// Whether somebody builds an index of its table now, which may be this one.
    is_built: bool,
}

/// The indexes that match and were not there before.
async fn new_indexes(
    connection: &mut PgConnection,
    condition: &str,
    before: &[i64],
) -> Result<Vec<Index>, sqlx::Error> {
    let before = before.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    // The table is not shown to roles that may not see the other session.
    let sql = format!(
        "select quote_ident(n.nspname) || '.' || quote_ident(c.relname), i.indisvalid,
           exists (select from pg_stat_progress_create_index p
                   where p.datname = current_database() and (p.relid is null or p.relid = i.indrelid))
         from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
         where {condition} and i.indexrelid::bigint <> all ('{{{before}}}')"
    );
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await?;
    let index = |row: &PgRow| {
        Ok(Index { name: row.try_get(0)?, is_valid: row.try_get(1)?, is_built: row.try_get(2)? })
    };
    rows.iter().map(index).collect()
}

/// An index that cannot be dropped now is an error, and the next run looks again.
async fn drop_all(connection: &mut PgConnection, indexes: Vec<Index>) -> Result<Settled, sqlx::Error> {
    if indexes.iter().any(|index| index.is_built) {
        return Ok(Settled::Undecided);
    }
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
