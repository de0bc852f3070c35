//! What hurts a service that runs while a file is applied. The rules see facts, and no text but the first word of a statement.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use db_core::sql::Token;

use super::catalog::{Catalog, Effects, Kind, Relation};
use super::rule::{Hazard, Rule};
use super::trace::Mode;

/// A statement, and what was seen before and after it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'s> {
    pub(super) tokens: &'s [Token<'s>],
    pub(super) before: &'s Catalog,
    pub(super) after: &'s Catalog,
    /// Before the statement.
    pub(super) held: &'s Effects,
    /// After it.
    pub(super) effects: &'s Effects,
    pub(super) in_transaction: bool,
}

impl Seen<'_> {
    /// The name that a table had.
    pub(super) fn name(&self, table: i64) -> Option<String> {
        Some(self.before.relations.get(&table)?.name.clone())
    }

    /// The tables that were written anew.
    pub(super) fn rewritten(&self) -> BTreeSet<i64> {
        let is_new = |(oid, old): (&i64, &Relation)| {
            let new = self.after.relations.get(oid)?;
            (old.file.is_some() && new.file.is_some() && old.file != new.file).then_some(*oid)
        };
        self.before.relations.iter().filter_map(is_new).collect()
    }

    /// The tables that were read as a whole.
    pub(super) fn scanned(&self) -> BTreeSet<i64> {
        let before = |oid: &i64| self.held.scans.get(oid).copied().unwrap_or(0);
        let scanned = self.effects.scans.iter().filter(|(oid, count)| **count > before(oid));
        scanned.map(|(oid, _)| *oid).filter(|oid| self.before.relations.contains_key(oid)).collect()
    }

    /// The strongest lock on a table.
    fn lock(effects: &Effects, table: i64) -> Option<Mode> {
        effects.locks.get(&table)?.iter().max().copied()
    }

    /// Whether it is done without keeping others waiting, which is possible outside of a transaction only.
    fn is_concurrent(&self) -> bool {
        !self.in_transaction && self.tokens.iter().any(|token| token.is("concurrently"))
    }

    /// Whether it updates or deletes rows, and which are not chosen by a condition. `WITH` may stand before it.
    fn writes_all(&self) -> Option<Rule> {
        let mut depth = 0_usize;
        let mut before = None;
        let mut rule = None;
        for token in self.tokens {
            match token.text {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                _ if depth > 0 => {}
                _ if token.is("where") => return None,
                _ if before.is_none_or(|before| before == ")") && rule.is_none() => {
                    rule = match () {
                        () if token.is("update") => Some(Rule::UpdatesAll),
                        () if token.is("delete") => Some(Rule::Truncates),
                        () => None,
                    };
                }
                _ => {}
            }
            before = Some(token.text);
        }
        rule.filter(|_| self.begins(&["update", "delete", "with"]))
    }

    fn begins(&self, words: &[&str]) -> bool {
        self.tokens.first().is_some_and(|token| token.is_any(words))
    }
}

/// Whom a lock keeps waiting.
fn waiting(mode: Mode) -> &'static str {
    if mode == Mode::AccessExclusiveLock { "readers and writers" } else { "writers" }
}

/// What a finding names one by one, such as tables that one statement drops.
const NAMED: usize = 5;

/// What a statement does that hurts.
pub(super) fn hazards(statement: usize, seen: &Seen<'_>) -> Vec<Hazard> {
    let mut found = Found { seen, explained: BTreeSet::new(), by_rule: BTreeMap::new() };
    found.relations();
    found.columns();
    found.constraints();
    found.indexes();
    found.rest();
    let hazard = |(rule, messages): (Rule, Vec<String>)| {
        let mut message = messages[..messages.len().min(NAMED)].join("; ");
        if messages.len() > NAMED {
            // Writing to a string does not fail.
            let _ = write!(message, "; and {} more like it", messages.len() - NAMED);
        }
        Hazard { rule, statement, message }
    };
    found.by_rule.into_iter().map(hazard).collect()
}

struct Found<'s> {
    seen: &'s Seen<'s>,
    /// The tables whose scan or rewriting a rule has told.
    explained: BTreeSet<i64>,
    by_rule: BTreeMap<Rule, Vec<String>>,
}

impl Found<'_> {
    fn add(&mut self, rule: Rule, message: String) {
        self.by_rule.entry(rule).or_default().push(message);
    }

    /// The lock that the statement has on a table, and whom it keeps waiting.
    fn waiting(&self, table: i64) -> &'static str {
        Seen::lock(self.seen.effects, table).map_or("readers and writers", waiting)
    }

    fn relations(&mut self) {
        let seen = self.seen;
        for (oid, old) in &seen.before.relations {
            let name = &old.name;
            let Some(new) = seen.after.relations.get(oid) else {
                if matches!(old.kind, Kind::Table | Kind::Partitioned | Kind::Foreign) {
                    self.add(Rule::DropsTable, format!("the table {name} is dropped"));
                }
                continue;
            };
            if old.is_partition && !new.is_partition && !seen.is_concurrent() {
                self.add(
                    Rule::Detaches,
                    format!("readers and writers of the whole table wait while {name} is detached"),
                );
            }
            if !old.has_row_security && new.has_row_security {
                let message = format!("rows of {name} are seen only as policies allow, from now on");
                self.add(Rule::HidesRows, message);
            }
        }
    }

    fn columns(&mut self) {
        let seen = self.seen;
        let (rewritten, scanned) = (seen.rewritten(), seen.scanned());
        for ((of, number), old) in &seen.before.columns {
            let (Some(table), true) = (seen.before.relations.get(of), seen.after.relations.contains_key(of))
            else {
                continue;
            };
            let name = format!("{}.{}", table.name, old.name);
            let Some(new) = seen.after.columns.get(&(*of, *number)) else {
                self.add(Rule::DropsColumn, format!("the column {name} is dropped"));
                continue;
            };
            if old.name != new.name {
                self.add(Rule::RenamesColumn, format!("the column {name} becomes {}", new.name));
            }
            let is_read = rewritten.contains(of) || scanned.contains(of);
            if old.data_type != new.data_type && is_read {
                let done = if rewritten.contains(of) { "written anew" } else { "read" };
                self.explained.insert(*of);
                self.add(
                    Rule::ChangesType,
                    format!(
                        "{name} changes from {} to {}: all rows are {done} while {} wait",
                        old.data_type,
                        new.data_type,
                        self.waiting(*of)
                    ),
                );
            }
            if !old.is_not_null && new.is_not_null && scanned.contains(of) && !self.explained.contains(of) {
                self.explained.insert(*of);
                let waiting = self.waiting(*of);
                self.add(
                    Rule::SetsNotNull,
                    format!(
                        "all rows of {} are read while {waiting} wait, for {} to be not null",
                        table.name, old.name
                    ),
                );
            }
        }
        for ((of, number), new) in &seen.after.columns {
            let Some(table) = seen.before.relations.get(of) else { continue };
            if seen.before.columns.contains_key(&(*of, *number)) {
                continue;
            }
            let name = format!("{}.{}", table.name, new.name);
            if rewritten.contains(of) {
                self.explained.insert(*of);
                let waiting = self.waiting(*of);
                self.add(
                    Rule::FillsColumn,
                    format!(
                        "all rows of {} are written anew while {waiting} wait, with a value for {}",
                        table.name, new.name
                    ),
                );
            }
            if new.is_not_null && !new.has_default && !new.is_generated {
                let message = format!(
                    "{name} is not null and has no default: this fails if there are rows, and later for those who do not know it"
                );
                self.explained.insert(*of);
                self.add(Rule::AddsRequired, message);
            }
        }
    }

    /// Whether a table had a constraint of this name.
    fn was_there(&self, table: i64, name: &str) -> bool {
        self.seen.before.constraints.values().any(|it| it.of == table && it.name == name)
    }

    fn constraints(&mut self) {
        let seen = self.seen;
        let scanned = seen.scanned();
        for (oid, new) in &seen.after.constraints {
            let Some(table) = seen.before.relations.get(&new.of) else { continue };
            let name = format!("{} of {}", new.name, table.name);
            let waiting = self.waiting(new.of);
            let Some(old) = seen.before.constraints.get(oid) else {
                // PostgreSQL checks no rows for a reference in a new column without a default.
                let is_of_nulls = new.columns.iter().all(|number| {
                    let key = (new.of, *number);
                    !seen.before.columns.contains_key(&key)
                        && seen.after.columns.get(&key).is_some_and(|it| !it.has_default)
                });
                match new.kind {
                    'c' | 'n'
                        if new.is_valid && scanned.contains(&new.of) && !self.explained.contains(&new.of) =>
                    {
                        self.explained.insert(new.of);
                        self.add(
                            Rule::Validates,
                            format!("all rows are checked for {name} while {waiting} wait"),
                        );
                    }
                    'f' if new.is_valid && !is_of_nulls => {
                        self.explained.extend([new.of, new.other]);
                        self.add(Rule::Validates, format!("all rows are checked for {name} while {waiting} wait, here and in the other table"));
                    }
                    // One that is there again has been built with its column's new type.
                    'u' | 'p' | 'x'
                        if !(seen.before.indexes.contains_key(&new.index)
                            || self.explained.contains(&new.of) && self.was_there(new.of, &new.name)) =>
                    {
                        self.explained.insert(new.of);
                        self.add(
                            Rule::BuildsConstraint,
                            format!("the index of {name} is built while {waiting} wait"),
                        );
                    }
                    _ => {}
                }
                continue;
            };
            let held = Seen::lock(seen.held, new.of).filter(|held| *held >= Mode::ShareLock);
            if let (false, true, Some(held)) = (old.is_valid, new.is_valid, held) {
                self.explained.extend([new.of, new.other]);
                let who = self::waiting(held);
                self.add(
                    Rule::Validates,
                    format!("all rows are checked for {name} while {who} wait for a lock that an earlier statement of the file holds"),
                );
            }
        }
    }

    fn indexes(&mut self) {
        let seen = self.seen;
        if seen.is_concurrent() {
            return;
        }
        let backs = |catalog: &Catalog, index: i64| catalog.constraints.values().any(|it| it.index == index);
        let has_rows = |table: i64| {
            let relation = seen.before.relations.get(&table)?;
            matches!(relation.kind, Kind::Table | Kind::MaterializedView).then_some(relation)
        };
        let has_name = |catalog: &Catalog, of: i64, name: &str| {
            catalog.indexes.values().any(|it| it.of == of && it.name == name)
        };
        for (oid, new) in &seen.after.indexes {
            let Some(table) = has_rows(new.of) else { continue };
            match seen.before.indexes.get(oid) {
                // One that is there again has been built with another type or file of its table.
                None if backs(seen.after, *oid) || has_name(seen.before, new.of, &new.name) => {}
                None => {
                    self.explained.insert(new.of);
                    let waiting = self.waiting(new.of);
                    self.add(
                        Rule::CreatesIndex,
                        format!("the index {} of {} is built while {waiting} wait", new.name, table.name),
                    );
                }
                Some(old) if old.file != new.file && seen.begins(&["reindex"]) => {
                    self.explained.insert(new.of);
                    self.add(
                        Rule::Reindexes,
                        format!("the index {} of {} is built anew while writers wait", new.name, table.name),
                    );
                }
                Some(_) => {}
            }
        }
        for (oid, old) in &seen.before.indexes {
            let is_gone = !seen.after.indexes.contains_key(oid) && !has_name(seen.after, old.of, &old.name);
            let has_columns = old
                .columns
                .iter()
                .all(|number| *number <= 0 || seen.after.columns.contains_key(&(old.of, *number)));
            let (true, true, false, Some(table)) =
                (is_gone, has_columns, backs(seen.before, *oid), has_rows(old.of))
            else {
                continue;
            };
            if seen.after.relations.contains_key(&old.of) {
                self.add(
                    Rule::DropsIndex,
                    format!(
                        "the index {} of {} is dropped, and readers and writers wait",
                        old.name, table.name
                    ),
                );
            }
        }
    }

    /// What no rule above has told.
    fn rest(&mut self) {
        let seen = self.seen;
        let scanned = seen.scanned();
        if seen.begins(&["drop"]) && seen.tokens.get(1).is_some_and(|token| token.is("database")) {
            self.add(Rule::DropsDatabase, "a database is dropped".to_owned());
        }
        for oid in seen.rewritten() {
            let (Some(name), false) = (seen.name(oid), self.explained.contains(&oid)) else { continue };
            self.explained.insert(oid);
            if seen.begins(&["truncate"]) {
                self.add(Rule::Truncates, format!("all rows of {name} are deleted"));
            } else if seen.begins(&["refresh"]) {
                self.add(Rule::Refreshes, format!("readers of {name} wait while it is made anew"));
            } else {
                let waiting = self.waiting(oid);
                let done = if seen.begins(&["do", "call", "select"]) {
                    "written anew, or emptied,"
                } else {
                    "written anew"
                };
                self.add(Rule::Rewrites, format!("{name} is {done} while {waiting} wait"));
            }
        }
        if let Some(rule) = seen.writes_all() {
            // Of the tables that count, it has the lock of a writer.
            let written = |oid: &&i64| {
                Seen::lock(seen.effects, **oid) >= Some(Mode::RowExclusiveLock) && scanned.contains(*oid)
            };
            if let Some(name) = seen.effects.locks.keys().find(written).and_then(|oid| seen.name(*oid)) {
                let done = if rule == Rule::UpdatesAll { "updated" } else { "deleted" };
                self.add(
                    rule,
                    format!("all rows of {name} are {done} in one transaction, and writers of each wait until it ends"),
                );
            }
        }
        let unexplained: Vec<i64> = scanned.difference(&self.explained).copied().collect();
        let is_query = seen.begins(&[
            "select", "insert", "update", "delete", "merge", "with", "copy", "values", "table", "execute",
        ]);
        let is_code = seen.begins(&["do", "call"]);
        if is_query || is_code {
            let held = seen.held.locks.iter().filter_map(|(oid, modes)| {
                let mode = modes.iter().max().filter(|mode| **mode >= Mode::ShareLock)?;
                Some((seen.name(*oid)?, *mode))
            });
            let strongest = held.min_by_key(|(_, mode)| Reverse(*mode));
            if let Some((name, mode)) = strongest.filter(|_| !unexplained.is_empty()) {
                let waiting = waiting(mode);
                self.add(
                    Rule::HoldsLock,
                    format!("all rows of a table are read while {waiting} of {name} wait for a lock that an earlier statement holds"),
                );
                return;
            }
        }
        if is_query || seen.begins(&["refresh"]) {
            return;
        }
        for oid in unexplained {
            let Some(mode) = Seen::lock(seen.effects, oid).filter(|mode| *mode >= Mode::ShareLock) else {
                continue;
            };
            let Some(name) = seen.name(oid) else { continue };
            self.add(Rule::Scans, format!("all rows of {name} are read while {} wait", waiting(mode)));
        }
    }
}
