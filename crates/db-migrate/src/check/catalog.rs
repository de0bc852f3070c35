//! What the catalog says of the tables that a migration may change.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

use super::trace::Mode;

/// The catalog's entries by their ids, which stay the same when something is renamed.
#[derive(Debug, Clone, Default)]
pub(super) struct Catalog {
    pub(super) relations: BTreeMap<i64, Relation>,
    /// By table and number.
    pub(super) columns: BTreeMap<(i64, i16), Column>,
    pub(super) constraints: BTreeMap<i64, Constraint>,
    pub(super) indexes: BTreeMap<i64, Index>,
    /// Schemas, types, and labels of enums.
    pub(super) names: BTreeMap<i64, Named>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Relation {
    /// With its schema, quoted.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Changes when the table is written anew.
    pub(super) file: Option<i64>,
    pub(super) has_row_security: bool,
    pub(super) is_partition: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Kind {
    #[serde(rename = "r")]
    Table,
    #[serde(rename = "p")]
    Partitioned,
    #[serde(rename = "f")]
    Foreign,
    #[serde(rename = "v")]
    View,
    #[serde(rename = "m")]
    MaterializedView,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Column {
    of: i64,
    number: i16,
    pub(super) name: String,
    pub(super) data_type: String,
    pub(super) is_not_null: bool,
    pub(super) has_default: bool,
    /// By an expression, or as an identity.
    pub(super) is_generated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Constraint {
    pub(super) of: i64,
    pub(super) name: String,
    /// As in `pg_constraint`.
    pub(super) kind: char,
    pub(super) is_valid: bool,
    pub(super) columns: Vec<i16>,
    pub(super) index: i64,
    /// The table that a foreign key leads to.
    pub(super) other: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Index {
    pub(super) of: i64,
    pub(super) name: String,
    pub(super) is_valid: bool,
    pub(super) file: Option<i64>,
    /// 0 stands for an expression.
    pub(super) columns: Vec<i16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Named {
    pub(super) what: What,
    pub(super) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Schema,
    Type,
    Label,
}

/// What the session's transaction has done to the tables that it holds locks on.
#[derive(Debug, Clone, Default)]
pub(super) struct Effects {
    pub(super) locks: BTreeMap<i64, Vec<Mode>>,
    /// How often it was read as a whole.
    pub(super) scans: BTreeMap<i64, i64>,
    /// How many rows were added, changed or deleted.
    pub(super) changes: BTreeMap<i64, i64>,
}

/// Which tables are read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of<'c> {
    /// All that a user has made, without these.
    All { own: &'c [i64] },
    /// Those of this catalog that the transaction has locked. What it has not locked is as it was.
    Locked(&'c Catalog),
}

#[derive(Deserialize)]
struct Answer {
    /// The tables that were read.
    among: Vec<i64>,
    relations: BTreeMap<i64, Relation>,
    columns: Vec<Column>,
    constraints: BTreeMap<i64, Constraint>,
    indexes: BTreeMap<i64, Index>,
    names: BTreeMap<i64, Named>,
    locks: BTreeMap<i64, Vec<Mode>>,
    scans: BTreeMap<i64, i64>,
    changes: BTreeMap<i64, i64>,
}

/// Reads the catalog of tables and what the transaction has done to them, in one statement.
pub(super) async fn read(
    connection: &mut PgConnection,
    of: Of<'_>,
) -> Result<(Catalog, Effects), sqlx::Error> {
    let among = match of {
        Of::All { own } => format!(
            "select c.oid from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
             where c.relkind in ('r', 'p', 'f', 'v', 'm') and c.relpersistence <> 't'
               and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\\_t%'
               and c.oid <> all ({})
               and not exists (select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')",
            oids(own.iter())
        ),
        Of::Locked(old) => {
            format!("select relation from locked where relation = any ({})", oids(old.relations.keys()))
        }
    };
    // The names of catalogs are not qualified: whoever puts a table before them has a throwaway server to spoil.
    let sql = format!(
        "with locked as materialized (
           select relation, array_agg(mode) as modes from pg_locks
           where pid = pg_backend_pid() and locktype = 'relation' and granted
             and database = (select oid from pg_database where datname = current_database())
           group by relation),
         among as materialized ({among})
         select json_build_object(
           'among', (select coalesce(json_agg(oid::int8), '[]') from among as a (oid)),
           'relations', (select coalesce(json_object_agg(c.oid, json_build_object(
               'name', quote_ident(n.nspname) || '.' || quote_ident(c.relname), 'kind', c.relkind,
               'file', pg_relation_filenode(c.oid)::int8, 'has_row_security', c.relrowsecurity, 'is_partition', c.relispartition)), '{{}}')
             from among as a (oid) join pg_class as c on c.oid = a.oid join pg_namespace as n on n.oid = c.relnamespace),
           'columns', (select coalesce(json_agg(json_build_object(
               'of', t.attrelid::int8, 'number', t.attnum, 'name', t.attname, 
               'data_type', format_type(t.atttypid, t.atttypmod) || coalesce(
                 (select ' collate ' || quote_ident(l.collname) from pg_collation as l join pg_type as y on y.oid = t.atttypid
                  where l.oid = t.attcollation and l.oid <> y.typcollation), ''),
               'is_not_null', t.attnotnull, 'has_default', t.atthasdef, 'is_generated', t.attidentity <> '' or t.attgenerated <> '')), '[]')
             from among as a (oid) join pg_attribute as t on t.attrelid = a.oid where t.attnum > 0 and not t.attisdropped),
           'constraints', (select coalesce(json_object_agg(k.oid, json_build_object(
               'of', k.conrelid::int8, 'name', k.conname, 'kind', k.contype, 'is_valid', k.convalidated,
               'columns', coalesce(k.conkey, '{{}}'), 'index', k.conindid::int8, 'other', k.confrelid::int8)), '{{}}')
             from among as a (oid) join pg_constraint as k on k.conrelid = a.oid),
           'indexes', (select coalesce(json_object_agg(i.indexrelid, json_build_object(
               'of', i.indrelid::int8, 'name', c.relname, 'is_valid', i.indisvalid,
               'file', pg_relation_filenode(c.oid)::int8, 'columns', i.indkey::int2[])), '{{}}')
             from among as a (oid) join pg_index as i on i.indrelid = a.oid join pg_class as c on c.oid = i.indexrelid),
           'names', (select coalesce(json_object_agg(oid, json_build_object('what', what, 'name', name)), '{{}}') from (
               select oid, 'schema', nspname from pg_namespace where nspname not like 'pg\\_%' and nspname <> 'information_schema'
               union all
               select t.oid, 'type', t.typname from pg_type as t join pg_namespace as n on n.oid = t.typnamespace
               where t.typtype in ('e', 'd', 'r') and n.nspname not in ('pg_catalog', 'information_schema')
               union all
               select oid, 'label', enumlabel from pg_enum) as named (oid, what, name)),
           'locks', (select coalesce(json_object_agg(relation, modes), '{{}}') from locked where relation in (select * from among)),
           'scans', (select coalesce(json_object_agg(oid, pg_stat_get_xact_numscans(oid)), '{{}}') from among as a (oid)),
           'changes', (select coalesce(json_object_agg(oid, pg_stat_get_xact_tuples_inserted(oid)
               + pg_stat_get_xact_tuples_updated(oid) + pg_stat_get_xact_tuples_deleted(oid)), '{{}}') from among as a (oid)))::text"
    );
    let row = connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let text: String = row.try_get(0)?;
    let Answer { among, relations, columns, constraints, indexes, names, locks, scans, changes } =
        serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let columns = columns.into_iter().map(|column| ((column.of, column.number), column)).collect();
    let mut read = Catalog { relations, columns, constraints, indexes, names };
    if let Of::Locked(old) = of {
        read = old.with(read, &among);
    }
    let effects = Effects { locks, scans, changes };
    Ok((read, effects))
}

impl Catalog {
    /// With what was read of these tables in the place of what was known of them.
    fn with(&self, read: Self, among: &[i64]) -> Self {
        let mut all = self.clone();
        let is_read = |table: i64| among.contains(&table);
        all.relations.retain(|oid, _| !is_read(*oid));
        all.columns.retain(|(of, _), _| !is_read(*of));
        all.constraints.retain(|_, it| !is_read(it.of));
        all.indexes.retain(|_, it| !is_read(it.of));
        all.relations.extend(read.relations);
        all.columns.extend(read.columns);
        all.constraints.extend(read.constraints);
        all.indexes.extend(read.indexes);
        all.names = read.names;
        all
    }

    /// Without the tables that are not in `old`, and what belongs to them.
    pub(super) fn only(mut self, old: &Self) -> Self {
        let is_old = |table: i64| old.relations.contains_key(&table);
        self.relations.retain(|oid, _| is_old(*oid));
        self.columns.retain(|(of, _), _| is_old(*of));
        self.constraints.retain(|_, it| is_old(it.of));
        self.indexes.retain(|_, it| is_old(it.of));
        self.names.retain(|oid, _| old.names.contains_key(oid));
        self
    }
}

/// An array in SQL.
fn oids<'o>(all: impl Iterator<Item = &'o i64>) -> String {
    let mut text = "'{".to_owned();
    for (nth, oid) in all.enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{oid}", if nth == 0 { "" } else { "," });
    }
    text.push_str("}'::oid[]");
    text
}
