//! What hurts a service that runs while a file is applied. The rules see facts, and no text but the first word of a statement.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use db_core::sql::{Position, Token};
use serde::{Serialize, Serializer};

use super::catalog::{Catalog, Effects, Index, Kind, Relation, What};
use super::trace::Mode;
use crate::Action;

/// Something that a file does, and that should be done in another way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The file: up or down.
    pub action: Action,
    /// Where the statement begins, if it is about one.
    pub position: Option<Position>,
    /// What it does.
    pub message: String,
    /// What to do instead.
    pub advice: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, position, message, advice, .. } = self;
        if let Some(position) = position {
            write!(f, "{position}: ")?;
        }
        let end = if message.contains('\n') { "\n" } else { ". " };
        write!(f, "{rule}: {message}{end}{advice}")
    }
}

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hazard {
    pub(super) rule: Rule,
    /// The number of the statement.
    pub(super) statement: usize,
    pub(super) message: String,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident = $name:literal $(or $other:literal)* : $advice:literal,)*) => {
        /// What is found. `Display` shows its name, by which a comment allows it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $rule,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$rule,)*];

            /// Its name. Where squawk has the rule, too, it is squawk's.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => $name,)* }
            }

            /// What to do instead.
            #[must_use]
            pub fn advice(self) -> &'static str {
                match self { $(Self::$rule => $advice,)* }
            }

            /// The rule of a name, or of one that squawk has for it.
            #[must_use]
            pub fn of(name: &str) -> Option<Self> {
                match name { $($name $(| $other)* => Some(Self::$rule),)* _ => None }
            }
        }
    };
}

rules! {
    /// The file cannot be applied.
    UpFails = "up-fails":
        "Mend the file",
    /// The way back cannot be run.
    DownFails = "down-fails":
        "Mend the down file, or remove it if there is no way back",
    /// After the way back, the schema is not what it was.
    DownDiffers = "down-differs":
        "Let the down file undo all that the up file does, or remove it if there is no way back",
    /// After the way back, the file cannot be applied again.
    UpAgainFails = "up-again-fails":
        "Let the down file remove all that the up file makes",
    /// After the way back, the file makes another schema than at first.
    UpAgainDiffers = "up-again-differs":
        "Let the down file undo all that the up file does",
    /// The statements were not looked at one by one to the end, so rules may have missed something.
    NotTraced = "not-traced":
        "Let the file run statement by statement, or look at it yourself and allow this by a comment that says so",
    /// A comment that is to allow something cannot be understood.
    BadAllow = "bad-allow":
        "Write `-- db-migrate: allow RULE reason`",

    /// An index is built while writers wait.
    CreatesIndex = "require-concurrent-index-creation":
        "Build it by `create index concurrently`, in a file that begins with `-- no-transaction`; on a partitioned table, `create index … on \
         only`, build those of the partitions concurrently, and attach them",
    /// An index is dropped while readers and writers wait.
    DropsIndex = "require-concurrent-index-deletion":
        "Drop it by `drop index concurrently`, in a file that begins with `-- no-transaction`",
    /// An index is built anew while writers wait, and readers that would use it.
    Reindexes = "require-concurrent-reindex":
        "Build it by `reindex … concurrently`, in a file that begins with `-- no-transaction`",
    /// A materialized view is refreshed while readers wait.
    Refreshes = "require-concurrent-refresh":
        "Give it a unique index, and use `refresh materialized view concurrently`",
    /// A partition is detached while readers and writers of the whole table wait.
    Detaches = "require-concurrent-partition-detach" or "require-concurrent-detach":
        "Detach it by `detach partition … concurrently`, in a file that begins with `-- no-transaction`",
    /// Something that is done concurrently stands in a file that runs in a transaction.
    ConcurrentInTransaction = "ban-concurrent-index-creation-in-transaction":
        "Move it to a file that begins with `-- no-transaction`",
    /// All rows are checked against a new constraint while writers wait.
    Validates = "constraint-missing-not-valid" or "adding-foreign-key-constraint":
        "Add it with `not valid`, and validate it in a later file: then writers go on",
    /// The index of a constraint is built while readers and writers wait.
    BuildsConstraint = "disallowed-unique-constraint" or "adding-serial-primary-key-field":
        "Build a unique index concurrently, and then `add constraint … using index`; there is no such way for an exclusion constraint",
    /// All rows are read for nulls while readers and writers wait.
    SetsNotNull = "adding-not-nullable-field":
        "Add `check (column is not null) not valid`, validate it in a later file, and then set the column not null: PostgreSQL reads no rows then",
    /// A column that needs a value is added, and writers of the version before give none.
    AddsRequired = "adding-required-field":
        "Give it a default, or add it without `not null`, fill it in batches, and let a later file demand it",
    /// A new column has all rows written anew.
    FillsColumn = "adding-field-with-default" or "adding-field-with-generated":
        "Add it without a default, which may be set for new rows by a second statement, and fill it in batches; a constant default, or one such as \
         `now()`, needs no rewriting",
    /// A column's new type has all rows written anew, or read.
    ChangesType = "changing-column-type":
        "Add a column of the new type, write both, fill it in batches, and let programs move to it before the old one goes",
    /// A table is written anew while readers and writers wait.
    Rewrites = "table-rewrite":
        "Do it where nobody waits for the table, or in steps: a new table that is filled in batches, or pg_repack",
    /// A table is read as a whole while writers, or also readers, wait.
    Scans = "table-scan":
        "Let a constraint prove it that was added with `not valid` and validated before: PostgreSQL reads no rows then",
    /// Rows are changed or looked for while a lock of an earlier statement keeps others waiting.
    HoldsLock = "backfill-under-lock":
        "Move it to a file of its own, and large ones to batches: the locks of the statements before are held until the file ends",
    /// All rows are written in one transaction.
    UpdatesAll = "update-of-all-rows":
        "Do it in batches (`db_migrate::batches`): rows stay locked, and the old ones take space, until the transaction ends",
    /// Programs of the version before use the old name.
    RenamesColumn = "renaming-column":
        "Add a column, write both, fill it in batches, and let programs move to it before the old one goes",
    /// Programs of the version before use the old name.
    RenamesTable = "renaming-table":
        "Let a view have the old name until no program uses it",
    /// Programs of the version before use the old name, of a type, a label, a function or a sequence.
    RenamesOther = "renaming-type":
        "Add the new one, and let programs move to it before the old one goes",
    /// Programs of the version before use it, and its values are lost.
    DropsColumn = "ban-drop-column":
        "Release a version first that does not use it; then allow this by a comment that says so",
    /// Programs of the version before use it, and its rows are lost.
    DropsTable = "ban-drop-table":
        "Release a version first that does not use it; then allow this by a comment that says so",
    /// Programs of the version before use it.
    DropsView = "ban-drop-view":
        "Release a version first that does not use it; then allow this by a comment that says so",
    /// Programs of the version before use it: a function, a sequence, a type or a label.
    DropsOther = "ban-drop-function" or "ban-drop-type":
        "Release a version first that does not use it; then allow this by a comment that says so",
    /// Writers of the version before rely on it.
    DropsDefault = "dropping-default":
        "Release a version first that gives a value; then allow this by a comment that says so",
    /// Writers of the version before may rely on it, in `on conflict`.
    DropsUnique = "dropping-unique-constraint":
        "Release a version first that does not name its columns in `on conflict`; then allow this by a comment that says so",
    /// All rows are lost.
    Truncates = "ban-truncate" or "ban-truncate-cascade":
        "Delete in batches what is not needed, or allow this by a comment that says why nobody needs the rows",
    /// The database is lost.
    DropsDatabase = "ban-drop-database":
        "Leave it to a person",
    /// Programs whose role no policy names see no rows any more.
    HidesRows = "enabling-row-security":
        "Make the policies before, in the same file, and allow this by a comment that says whom they serve",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

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
            let has_work = scanned.difference(&self.explained).next().is_some();
            if let Some((name, mode)) = strongest.filter(|_| has_work) {
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
        for oid in scanned.difference(&self.explained.clone()) {
            let Some(mode) = Seen::lock(seen.effects, *oid).filter(|mode| *mode >= Mode::ShareLock) else {
                continue;
            };
            let Some(name) = seen.name(*oid) else { continue };
            self.add(Rule::Scans, format!("all rows of {name} are read while {} wait", waiting(mode)));
        }
    }
}
