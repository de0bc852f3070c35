//! What a file takes away from those who use the database, judged at its end: a later statement may give it back.

use std::collections::BTreeSet;

use super::catalog::{Catalog, Index, Kind, Relation, What};
use super::rule::{Hazard, Rule};

/// What a statement has taken away, and a later one of the file may give back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lost {
    /// The name of a table or a view, which was renamed, or of a view that was dropped.
    Relation(i64),
    /// The value that a column, of a table and by its number, has by itself.
    Default(i64, i16),
    /// That values of columns, of a table and by their numbers, are unique, by the index of this name. A writer of the version before may name
    /// them in `on conflict`.
    Unique(i64, Vec<i16>, String),
    /// A schema, a type, a label, a function or a sequence.
    Named(What, String),
}

/// What a statement has taken away.
pub(super) fn lost(before: &Catalog, after: &Catalog) -> Vec<Lost> {
    let relations = before.relations.iter().filter(|(oid, old)| match after.relations.get(oid) {
        Some(new) => new.name != old.name,
        None => matches!(old.kind, Kind::View | Kind::MaterializedView),
    });
    let defaults = before.columns.iter().filter(|(key, old)| {
        old.is_not_null && old.has_value() && after.columns.get(key).is_some_and(|new| !new.has_value())
    });
    let has = |of: i64| move |number: &i16| *number <= 0 || after.columns.contains_key(&(of, *number));
    let unique = before.indexes.iter().filter(|(oid, old)| {
        old.is_unique && !after.indexes.contains_key(oid) && old.columns.iter().all(has(old.of))
    });
    let names = after.named();
    relations
        .map(|(oid, _)| Lost::Relation(*oid))
        .chain(defaults.map(|((of, number), _)| Lost::Default(*of, *number)))
        .chain(unique.map(|(_, old)| Lost::Unique(old.of, old.columns.clone(), old.name.clone())))
        .chain(before.named().difference(&names).map(|(what, name)| Lost::Named(*what, (*name).to_owned())))
        .collect()
}

/// What became of it at the end of the file.
pub(super) fn still_lost(statement: usize, lost: &Lost, start: &Catalog, end: &Catalog) -> Option<Hazard> {
    let hazard = |rule, message| Some(Hazard { rule, statement, message });
    match lost {
        Lost::Relation(oid) => {
            let Relation { name, kind, .. } = start.relations.get(oid)?;
            let is_view = matches!(kind, Kind::View | Kind::MaterializedView);
            let again = end.relations.iter().find(|(_, it)| it.name == *name);
            let view = again.filter(|(_, it)| is_view || it.kind == Kind::View);
            match (view, end.relations.get(oid)) {
                (Some((view, _)), _) => {
                    let has = |column: &str| {
                        end.columns.range((*view, 0)..=(*view, i16::MAX)).any(|(_, it)| it.name == column)
                    };
                    let mut columns = start.columns.range((*oid, 0)..=(*oid, i16::MAX));
                    let (_, missing) = columns.find(|(_, it)| !has(&it.name))?;
                    hazard(
                        Rule::DropsColumn,
                        format!("{name} is made again without its column {}", missing.name),
                    )
                }
                (None, Some(renamed)) if renamed.name == *name => None,
                (None, Some(renamed)) => {
                    hazard(Rule::RenamesTable, format!("{name} becomes {}", renamed.name))
                }
                (None, None) if is_view => hazard(Rule::DropsView, format!("the view {name} is dropped")),
                // The table is dropped, which is told already.
                (None, None) => None,
            }
        }
        Lost::Default(of, number) => {
            let column = end.columns.get(&(*of, *number)).filter(|it| it.is_not_null && !it.has_value())?;
            let table = start.relations.get(of)?;
            hazard(
                Rule::DropsDefault,
                format!(
                    "{}.{} is not null and loses the value that it had by itself",
                    table.name, column.name
                ),
            )
        }
        Lost::Unique(of, columns, name) => {
            let sorted = |columns: &[i16]| columns.iter().copied().collect::<BTreeSet<i16>>();
            let is_same = |it: &Index| {
                it.of == *of && it.is_unique && it.is_valid && sorted(&it.columns) == sorted(columns)
            };
            if end.indexes.values().any(is_same) {
                return None;
            }
            let table = end.relations.get(of)?;
            hazard(Rule::DropsUnique, format!("{name} of {} is dropped", table.name))
        }
        Lost::Named(what, name) => {
            if end.named().contains(&(*what, name.as_str())) {
                return None;
            }
            let (oid, _) = start.names.iter().find(|(_, it)| it.what == *what && it.name == *name)?;
            match end.names.get(oid) {
                Some(new) => hazard(what.renamed(), format!("the {what} {name} becomes {}", new.name)),
                None => hazard(what.dropped()?, format!("the {what} {name} is dropped")),
            }
        }
    }
}
