//! What is found, by name, and what to do instead.

use std::fmt;

use db_core::sql::Position;
use serde::{Serialize, Serializer};

use crate::Action;

/// Something that a file does, and that should be done in another way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The file: up, down or repeatable.
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
    /// A repeatable file cannot run a second time.
    NotRepeatable = "not-repeatable":
        "Write it so that it can run again: `create or replace`, or `drop … if exists` before",
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
