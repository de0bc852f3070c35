//! The declarations beside the tables of the database.

use serde::Deserialize;

use super::KeyType;
use super::declared::{Declared, Kind};
use crate::{Error, Pool};

/// A declared table as it is. No table of this name: no attributes.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// `pg_class.relkind`: `r` and `p` are tables.
    kind: Option<String>,
    attributes: Vec<Attribute>,
    /// The columns of each unique index that is over columns, and over all rows.
    uniques: Vec<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Attribute {
    name: String,
    kind: String,
    not_null: bool,
    generated: bool,
}

/// The table of each declaration, in the same order.
pub(super) async fn tables(pool: &Pool, declared: &[Declared]) -> Result<Vec<Table>, Error> {
    let names: Vec<_> = declared.iter().map(Declared::relation).collect();
    let rows: Vec<(Option<String>, String, String)> = sqlx::query_as(
        "select c.relkind::text,
           coalesce((select json_agg(json_build_object('name', a.attname, 'kind', format_type(a.atttypid, null),
                       'not_null', a.attnotnull, 'generated', a.attgenerated <> ''))
                     from pg_attribute a
                     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]')::text,
           coalesce((select json_agg((select json_agg(a.attname)
                                      from unnest(i.indkey[0:i.indnkeyatts - 1]) k
                                      join pg_attribute a on a.attrelid = c.oid and a.attnum = k))
                     from pg_index i
                     where i.indrelid = c.oid and i.indisunique and i.indisvalid
                       and i.indpred is null and i.indexprs is null), '[]')::text
         from unnest($1::text[]) with ordinality d(name, nth)
         left join pg_class c on c.oid = to_regclass(d.name)
         order by d.nth",
    )
    .bind(names)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(kind, attributes, uniques)| Table {
            kind,
            attributes: serde_json::from_str(&attributes).expect("what `json_build_object` makes"),
            uniques: serde_json::from_str(&uniques).expect("lists of names"),
        })
        .collect())
}

/// Everything that does not fit, a line each.
pub(super) fn misfits(declared: &[Declared], tables: &[Table]) -> Vec<String> {
    let mut misfits = Vec::new();
    for (nth, (column, table)) in declared.iter().zip(tables).enumerate() {
        let mut say = |what: String| misfits.push(format!("{column}: {what}"));
        // A column may have several indexes, each stored in its own column.
        let is_same = |other: &Declared| {
            let is_stored_there =
                other.relation() == column.relation() && other.stored_column() == column.stored_column();
            let is_sealed = [other.kind, column.kind] == [Kind::Sealed; 2];
            is_stored_there || is_sealed && other.to_string() == column.to_string()
        };
        if declared[..nth].iter().any(is_same) {
            say("it is declared twice".to_owned());
        }
        for misfit in column.misfits(table) {
            say(misfit);
        }
    }
    misfits
}

impl Declared {
    fn misfits(&self, table: &Table) -> Vec<String> {
        let relation = self.relation();
        match table.kind.as_deref() {
            Some("r" | "p") => {}
            None => return vec![format!("there is no table {relation}")],
            Some(_) => return vec![format!("{relation} is not a table")],
        }
        let mut misfits = Vec::new();
        match table.attribute(self.stored_column()) {
            None => misfits.push(format!("there is no column {:?} in {relation}", self.stored_column())),
            Some(Attribute { generated: true, .. }) => {
                misfits.push(format!("the column {:?} of {relation} is generated", self.stored_column()));
            }
            Some(Attribute { kind, .. }) if kind != "bytea" => {
                misfits.push(format!(
                    "the column {:?} of {relation} is {kind}, and has to be bytea",
                    self.stored_column()
                ));
            }
            Some(_) => {}
        }
        match self.kind {
            Kind::Sealed => misfits.extend(self.key_misfits(table)),
            Kind::Index { is_unique: true } if !table.is_unique(&[self.stored_column()]) => {
                misfits.push(format!(
                    "no unique index of {relation} is over the column {:?} alone",
                    self.stored_column()
                ));
            }
            Kind::Index { .. } => {}
        }
        misfits
    }

    fn key_misfits(&self, table: &Table) -> Vec<String> {
        if self.key_columns().is_empty() {
            return vec!["the key of its rows is not declared".to_owned()];
        }
        let mut misfits = Vec::new();
        for (name, declared) in self.key_columns() {
            match table.attribute(name) {
                None => misfits.push(format!("there is no key column {name:?} in {}", self.relation())),
                Some(Attribute { kind, .. }) if !KeyType::ALL.iter().any(|stable| stable.name() == kind) => {
                    misfits.push(format!(
                        "the key column {name:?} is {kind}, whose text is not the same in every session"
                    ));
                }
                Some(Attribute { kind, .. }) if kind != declared.name() => {
                    misfits.push(format!("the key column {name:?} is {kind}, and is declared as {declared}"));
                }
                Some(Attribute { not_null: false, .. }) => {
                    misfits.push(format!("the key column {name:?} may be null"));
                }
                Some(_) => {}
            }
        }
        let names: Vec<_> = self.key_columns().iter().map(|(name, _)| name.as_ref()).collect();
        if misfits.is_empty() && !table.is_unique(&names) {
            misfits.push(format!("no unique index of {} is over its key alone: {names:?}", self.relation()));
        }
        misfits
    }
}

impl Table {
    fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    /// Whether the columns, in any order, are those of a unique index.
    fn is_unique(&self, columns: &[&str]) -> bool {
        self.uniques.iter().any(|unique| {
            unique.len() == columns.len()
                && columns.iter().all(|column| unique.iter().any(|name| name == column))
        })
    }
}
