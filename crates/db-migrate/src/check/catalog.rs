//! What the catalog says of the tables that a migration may change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use serde::Deserialize;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

use super::rule::Rule;
use super::trace::Mode;

/// The catalog's entries by their ids, which stay the same when something is renamed.
#[derive(Debug, Clone, Default)]
pub(super) struct Catalog {
    pub(super) relations: BTreeMap<i64, Relation>,
    /// By table and number.
    pub(super) columns: BTreeMap<(i64, i16), Column>,
    pub(super) constraints: BTreeMap<i64, Constraint>,
    pub(super) indexes: BTreeMap<i64, Index>,
    /// What else programs name.
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
    pub(super) is_unique: bool,
    pub(super) file: Option<i64>,
    /// 0 stands for an expression.
    pub(super) columns: Vec<i16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Named {
    pub(super) what: What,
    pub(super) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Schema,
    Type,
    /// Of an enum.
    Label,
    /// But for those of triggers, which no program calls.
    Function,
    Sequence,
}

impl What {
    pub(super) fn renamed(self) -> Rule {
        if self == Self::Schema { Rule::RenamesTable } else { Rule::RenamesOther }
    }

    /// None for a schema, whose tables are told one by one.
    pub(super) fn dropped(self) -> Option<Rule> {
        (self != Self::Schema).then_some(Rule::DropsOther)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Schema => "schema",
            Self::Type => "type",
            Self::Label => "label",
            Self::Function => "function",
            Self::Sequence => "sequence",
        })
    }
}

impl Column {
    /// Whether it has a value by itself.
    pub(super) fn has_value(&self) -> bool {
        self.has_default || self.is_generated
    }
}

/// What the session's transaction has done to the tables that it holds locks on.
#[derive(Debug, Clone, Default)]
pub(super) struct Effects {
    pub(super) locks: BTreeMap<i64, Vec<Mode>>,
    /// How often it was read as a whole.
    pub(super) scans: BTreeMap<i64, i64>,
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
    // The names of catalogs are not qualified: a file that puts its own before them spoils a server that is thrown away.
    let sql = format!(
        "with locked as materialized (
           select relation, array_agg(mode) as modes from pg_locks
           where pid = pg_backend_pid() and locktype = 'relation' and granted and mode <> 'SIReadLock'
             and database = (select oid from pg_database where datname = current_database())
           group by relation),
         among as materialized ({among}),
         spaces as materialized (
           select oid, quote_ident(nspname) as name, nspname from pg_namespace where nspname not like 'pg\\_%' and nspname <> 'information_schema')
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
               'of', i.indrelid::int8, 'name', c.relname, 'is_valid', i.indisvalid, 'is_unique', i.indisunique,
               'file', pg_relation_filenode(c.oid)::int8, 'columns', i.indkey::int2[])), '{{}}')
             from among as a (oid) join pg_index as i on i.indrelid = a.oid join pg_class as c on c.oid = i.indexrelid),
           'names', (select coalesce(json_object_agg(oid, json_build_object('what', what, 'name', name)), '{{}}') from (
               select oid, 'schema', quote_ident(nspname) from spaces
               union all
               select t.oid, 'type', s.name || '.' || quote_ident(t.typname) from pg_type as t join spaces as s on s.oid = t.typnamespace
               where t.typtype in ('e', 'd', 'r')
               union all
               select e.oid, 'label', quote_literal(e.enumlabel) || ' of ' || s.name || '.' || quote_ident(t.typname)
               from pg_enum as e join pg_type as t on t.oid = e.enumtypid join spaces as s on s.oid = t.typnamespace
               union all
               select p.oid, 'function', s.name || '.' || quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')'
               from pg_proc as p join spaces as s on s.oid = p.pronamespace where p.prorettype <> 'trigger'::regtype
                 and not exists (select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
               union all
               select c.oid, 'sequence', s.name || '.' || quote_ident(c.relname) from pg_class as c join spaces as s on s.oid = c.relnamespace
               where c.relkind = 'S' and not exists (select from pg_depend as d where d.objid = c.oid and d.deptype in ('a', 'i')
                 and d.refobjsubid > 0)) as named (oid, what, name)),
           'locks', (select coalesce(json_object_agg(relation, modes), '{{}}') from locked where relation in (select * from among)),
           'scans', (select coalesce(json_object_agg(oid, pg_stat_get_xact_numscans(oid)), '{{}}') from among as a (oid)))::text"
    );
    let row = connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let text: String = row.try_get(0)?;
    let Answer { among, relations, columns, constraints, indexes, names, locks, scans } =
        serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let columns = columns.into_iter().map(|column| ((column.of, column.number), column)).collect();
    let mut read = Catalog { relations, columns, constraints, indexes, names };
    if let Of::Locked(old) = of {
        read = old.with(read, &among);
    }
    let effects = Effects { locks, scans };
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

    /// What programs name, but for tables.
    pub(super) fn named(&self) -> BTreeSet<(What, &str)> {
        self.names.values().map(|it| (it.what, it.name.as_str())).collect()
    }

    /// Without what is not in `old`.
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
