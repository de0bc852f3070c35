//! The table that batches walk, and the statements for it.

use serde::Deserialize;
use sqlx::postgres::PgConnection;

use super::BatchError;
use crate::session::answer;
use crate::table::quoted;

/// A column whose values a change is given.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) is_written: bool,
}

/// The table as the catalog has it.
#[derive(Debug)]
pub(super) struct Table {
    /// As SQL: quoted, and with a schema where one was given.
    pub(super) relation: String,
    pub(super) oid: i64,
    /// The estimated number of rows.
    pub(super) estimate: Option<i64>,
    /// The part of the pages to look at when the ranges are cut, in per cent.
    sample: f64,
    key: Vec<Typed>,
    /// The positions of the key columns in the order of the index that is walked.
    walk: Vec<usize>,
    columns: Vec<(Typed, bool)>,
    /// Which rows may need a change, as SQL.
    pending: String,
    /// Whether each change of a row changes its `xmin`.
    is_versioned: bool,
}

/// How a row is known to be as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Same {
    /// By the transaction that stored it, its `xmin` (PostgreSQL's manual, chapter 5.5 "System Columns"): old values need not be sent and
    /// compared. A change of any column counts.
    Version,
    /// By the values that were read. A change of another column does not count, so that rows that change all the time are stored, too.
    Values,
}

#[derive(Clone, Debug)]
struct Typed {
    name: String,
    kind: String,
}

/// Values of one batch take at most this, or the first of them.
const BYTES: usize = 16 << 20;

#[derive(Debug, Deserialize)]
struct Attribute {
    name: String,
    kind: String,
    not_null: bool,
    generated: bool,
}

#[derive(Debug, Deserialize)]
struct Unique {
    is_primary: bool,
    columns: Vec<String>,
}

type Found = (Option<i64>, Option<String>, Option<i64>, f64, bool, String, String);

impl Table {
    /// Looks the table up. `key` empty: the primary key.
    pub(super) async fn find(
        connection: &mut PgConnection,
        relation: &str,
        key: &[String],
        columns: &[Column],
        pending: Option<&str>,
    ) -> Result<Table, BatchError> {
        let found = sqlx::query_as(
            "select c.oid::bigint, c.relkind::text, leaves.rows, leaves.sample,
               leaves.are_heaps and not (c.relkind = 'r' and c.relhassubclass),
               coalesce((select json_agg(json_build_object('name', a.attname, 'kind', format_type(a.atttypid, null),
                           'not_null', a.attnotnull, 'generated', a.attgenerated <> ''))
                         from pg_attribute a
                         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]')::text,
               coalesce((select json_agg(json_build_object('is_primary', i.indisprimary, 'columns',
                           (select json_agg(a.attname order by k.nth)
                            from unnest(i.indkey[0:i.indnkeyatts - 1]) with ordinality k(attnum, nth)
                            join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum)))
                         from pg_index i
                         where i.indrelid = c.oid and i.indisunique and i.indisvalid
                           and i.indpred is null and i.indexprs is null), '[]')::text
             from (select to_regclass($1) as oid) as wanted
             left join pg_class c on c.oid = wanted.oid
             cross join lateral (
               select case when bool_or(reltuples > 0) then sum(greatest(reltuples, 0))::bigint end as rows,
                 least(100, 200000 / greatest(coalesce(sum(pg_relation_size(oid)), 0) / 8192, 1))::float8 as sample,
                 coalesce(bool_and(relam = (select oid from pg_am where amname = 'heap')), false) as are_heaps
               from pg_class
               where relkind <> 'p' and (oid = wanted.oid or oid in (select relid from pg_partition_tree(wanted.oid)))) as leaves",
        )
        .bind(relation)
        .fetch_one(connection);
        let (oid, kind, estimate, sample, is_versioned, attributes, uniques): Found =
            answer(found).await.map_err(failed("look up", relation))?;
        let misfit = |what: Vec<String>| BatchError::Misfit { relation: relation.to_owned(), what };
        let Some(oid) = oid else { return Err(misfit(vec!["there is no such table".to_owned()])) };
        if !matches!(kind.as_deref(), Some("r" | "p")) {
            return Err(misfit(vec!["it is not a table".to_owned()]));
        }
        let attributes: Vec<Attribute> =
            serde_json::from_str(&attributes).expect("what `json_build_object` makes");
        let uniques: Vec<Unique> = serde_json::from_str(&uniques).expect("what `json_build_object` makes");

        let mut misfits = Vec::new();
        let typed = |name: &str, misfits: &mut Vec<String>| {
            let attribute = attributes.iter().find(|attribute| attribute.name == name);
            if attribute.is_none() {
                misfits.push(format!("there is no column {name:?}"));
            }
            attribute.map(|attribute| Typed { name: name.to_owned(), kind: attribute.kind.clone() })
        };
        let unique = if key.is_empty() {
            uniques.iter().find(|unique| unique.is_primary)
        } else {
            uniques.iter().find(|unique| {
                unique.columns.len() == key.len() && key.iter().all(|name| unique.columns.contains(name))
            })
        };
        let walked = unique.map(|unique| unique.columns.as_slice());
        let key = if key.is_empty() { walked.unwrap_or_default() } else { key };
        let key: Vec<Typed> = key.iter().filter_map(|name| typed(name, &mut misfits)).collect();
        let columns: Vec<(Typed, bool)> = columns
            .iter()
            .filter_map(|column| typed(&column.name, &mut misfits).map(|typed| (typed, column.is_written)))
            .collect();
        for name in key.iter().map(|column| &column.name) {
            if attributes.iter().any(|attribute| attribute.name == *name && !attribute.not_null) {
                misfits.push(format!("the key column {name:?} may be null"));
            }
        }
        for (Typed { name, .. }, is_written) in &columns {
            if *is_written
                && attributes.iter().any(|attribute| attribute.name == *name && attribute.generated)
            {
                misfits.push(format!("the column {name:?} is generated"));
            }
        }
        let walk: Vec<usize> = walked
            .unwrap_or_default()
            .iter()
            .filter_map(|name| key.iter().position(|column| column.name == *name))
            .collect();
        if unique.is_none() && misfits.is_empty() {
            misfits.push(if key.is_empty() {
                "it has no primary key".to_owned()
            } else {
                let names: Vec<_> = key.iter().map(|column| &column.name).collect();
                format!("no unique index is over its key alone: {names:?}")
            });
        }
        if !misfits.is_empty() {
            return Err(misfit(misfits));
        }
        let pending = pending.unwrap_or("true").to_owned();
        Ok(Table {
            relation: relation.to_owned(),
            oid,
            estimate,
            sample,
            key,
            walk,
            columns,
            pending,
            is_versioned,
        })
    }

    /// The number of key columns.
    pub(super) fn key_len(&self) -> usize {
        self.key.len()
    }

    /// The number of columns whose values are read.
    pub(super) fn values(&self) -> usize {
        self.columns.len()
    }

    /// Whether the values of the nth column are stored.
    pub(super) fn is_written(&self, nth: usize) -> bool {
        self.columns[nth].1
    }

    /// Reads the next rows by the order of the key: the key's texts, the values, whether the row may need a change, and its version. Values
    /// of other rows are null. Parameters: the bounds that are given, then the number of rows.
    pub(super) fn read(&self, has_after: bool, has_to: bool) -> String {
        let walked = list(self.walk.iter().map(|nth| format!("t.{}", quoted(&self.key[*nth].name))));
        let mut parameter = 0;
        let mut bound = |operator: &str| {
            let bounds = list(
                self.walk
                    .iter()
                    .enumerate()
                    .map(|(at, nth)| format!("${}::text::{}", parameter + at + 1, self.key[*nth].kind)),
            );
            parameter += self.walk.len();
            format!("({walked}) {operator} ({bounds})")
        };
        let mut bounds = vec!["true".to_owned()];
        bounds.extend(has_after.then(|| bound(">")));
        bounds.extend(has_to.then(|| bound("<=")));
        let keys =
            list(self.key.iter().enumerate().map(|(nth, key)| format!("t.{} as k{nth}", quoted(&key.name))));
        let values = self.columns.iter().enumerate();
        let read =
            list(values.clone().map(|(nth, (column, _))| format!("{} as v{nth}", column.as_bytes("t"))));
        let sizes = values.clone().map(|(nth, _)| format!("coalesce(octet_length(v{nth}), 0)"));
        let order = list(self.walk.iter().map(|nth| format!("k{nth}")));
        // Without the table's name, it would be the text of the key.
        let by_key = list(self.walk.iter().map(|nth| format!("sized.k{nth}")));
        let texts = list((0..self.key.len()).map(|nth| format!("sized.k{nth}::text")));
        let shown = list(values.map(|(nth, _)| format!("case when pending then v{nth} end")));
        let size = sizes.collect::<Vec<_>>().join(" + ");
        let (relation, pending) = (&self.relation, &self.pending);
        let version = if self.is_versioned { "t.xmin" } else { "null::xid" };
        let bounds = bounds.join(" and ");
        let limit = parameter + 1;
        format!(
            "select {texts}, {shown}, pending, case when pending then version::text end
             from (select *, sum(case when pending then {size} else 0 end) over (order by {order} rows between unbounded preceding
                     and 1 preceding) as before
                   from (select {keys}, {read}, coalesce(({pending}), false) as pending, {version} as version
                         from {relation} as t
                         where {bounds}
                         order by {walked}
                         limit ${limit}) as page) as sized
             where coalesce(before, 0) < {BYTES}
             order by {by_key}",
        )
    }

    /// Reads rows again by their keys, those that may still need a change. Parameters: the texts of each key column.
    pub(super) fn read_again(&self) -> String {
        format!(
            "select {texts}, {values}, true, null
             from (select * from {relation} where {pending}) as t
             join unnest({parameters}) as w({names}) on {same}",
            texts = list(self.key.iter().map(|key| format!("t.{}::text", quoted(&key.name)))),
            values = list(self.columns.iter().map(|(column, _)| column.as_bytes("t"))),
            relation = self.relation,
            parameters = list((1..=self.key.len()).map(|nth| format!("${nth}::text[]"))),
            names = list((0..self.key.len()).map(|nth| format!("k{nth}"))),
            same = self.same_key(),
            pending = self.pending,
        )
    }

    /// Stores values in rows that are as they were, and returns the numbers of the rows. Parameters: the numbers, the texts of each key
    /// column, the versions or the old values of each column, the new values of each column that is written.
    pub(super) fn write(&self, same: Same) -> String {
        format!(
            "with stored as (
               update {relation} as t set {sets} from {given} where {key} and {old} returning w.nth)
             select array_agg(nth) from stored",
            relation = self.relation,
            sets = self.sets(),
            given = self.given(same),
            key = self.same_key(),
            old = self.is_same(same),
        )
    }

    /// As [`write`](Self::write), but passes over rows that somebody has locked.
    pub(super) fn write_unlocked(&self, same: Same) -> String {
        format!(
            "with w as materialized (
               select w.* from {relation} as t join {given} on {key} and {old} for no key update of t skip locked),
             stored as (update {relation} as t set {sets} from w where {key} returning w.nth)
             select array_agg(nth) from stored",
            relation = self.relation,
            sets = self.sets(),
            given = self.given(same),
            key = self.same_key(),
            old = self.is_same(same),
        )
    }

    /// The keys that cut the table into parts of about one size, from a sample of its pages.
    pub(super) fn cuts(&self, ranges: usize) -> String {
        let walked = self.walk.iter().map(|nth| format!("t.{}", quoted(&self.key[*nth].name)));
        let keys =
            self.key.iter().enumerate().map(|(nth, key)| format!("t.{}::text as k{nth}", quoted(&key.name)));
        format!(
            "select {texts}
             from (select {keys}, row_number() over (order by {walked}) as nth, count(*) over () as total
                   from {relation} as t tablesample system ({sample})) as sampled
             where total >= {least} and nth % (total / {ranges}) = 0 and nth / (total / {ranges}) < {ranges}
             order by nth",
            texts = list((0..self.key.len()).map(|nth| format!("k{nth}"))),
            keys = list(keys),
            walked = list(walked),
            relation = self.relation,
            sample = self.sample,
            least = ranges * 20,
        )
    }

    /// The texts of a key in the order of the walk.
    pub(super) fn walked<'a>(&'a self, key: &'a [String]) -> impl Iterator<Item = &'a String> {
        self.walk.iter().map(|nth| &key[*nth])
    }

    fn sets(&self) -> String {
        let written = self.columns.iter().enumerate().filter(|(_, (_, is_written))| *is_written);
        list(written.map(|(nth, (column, _))| {
            let new = if column.is_bytes() {
                format!("w.n{nth}")
            } else {
                format!("convert_from(w.n{nth}, 'UTF8')::{}", column.kind)
            };
            format!("{} = {new}", quoted(&column.name))
        }))
    }

    fn given(&self, same: Same) -> String {
        let written = self.columns.iter().enumerate().filter(|(_, (_, is_written))| *is_written);
        let keys = (0..self.key.len()).map(|nth| (format!("k{nth}"), "text[]"));
        let old = match same {
            Same::Version => vec![("version".to_owned(), "text[]")],
            Same::Values => (0..self.columns.len()).map(|nth| (format!("o{nth}"), "bytea[]")).collect(),
        };
        let new = written.map(|(nth, _)| (format!("n{nth}"), "bytea[]"));
        let all: Vec<_> =
            std::iter::once(("nth".to_owned(), "int[]")).chain(keys).chain(old).chain(new).collect();
        format!(
            "unnest({}) as w({})",
            list(all.iter().enumerate().map(|(nth, (_, kind))| format!("${}::{kind}", nth + 1))),
            list(all.iter().map(|(name, _)| name.clone())),
        )
    }

    fn same_key(&self) -> String {
        let same = self.key.iter().enumerate();
        and(same.map(|(nth, key)| format!("t.{} = w.k{nth}::{}", quoted(&key.name), key.kind)))
    }

    fn is_same(&self, same: Same) -> String {
        if same == Same::Version {
            return "t.xmin = w.version::xid".to_owned();
        }
        let columns = self.columns.iter().enumerate();
        and(columns
            .map(|(nth, (column, _))| format!("{} is not distinct from w.o{nth}", column.as_bytes("t"))))
    }
}

impl Typed {
    fn is_bytes(&self) -> bool {
        self.kind == "bytea"
    }

    /// The column's value as bytes: its text in UTF-8, unless it is `bytea`. Texts then compare byte by byte, also by a collation that
    /// calls different texts equal, and types without an equality compare at all.
    fn as_bytes(&self, table: &str) -> String {
        let column = format!("{table}.{}", quoted(&self.name));
        if self.is_bytes() { column } else { format!("convert_to({column}::text, 'UTF8')") }
    }
}

pub(super) fn failed<'a>(
    what: &'static str,
    relation: &'a str,
) -> impl FnOnce(sqlx::Error) -> BatchError + use<'a> {
    move |error| BatchError::Failed { what, relation: relation.to_owned(), cause: Box::new(error.into()) }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn and(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(" and ")
}
