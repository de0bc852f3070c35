//! A set of migrations, and how it is run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migration, Migrator};

use crate::data_step::RustStep;
use crate::{Error, files, repeatable};

/// Default of [`Migrations::with_lock_deadline`].
const LOCK_DEADLINE: Duration = Duration::from_mins(1);

/// Default of [`Migrations::with_lock_timeout`].
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of [`Migrations::with_patience`].
const PATIENCE: Duration = Duration::from_mins(10);

/// The migrations that a program knows.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of the program")]
pub struct Migrations {
    pub(crate) migrator: Migrator,
    /// By name.
    pub(crate) repeatables: BTreeMap<String, Migration>,
    /// By name.
    pub(crate) steps: BTreeMap<String, RustStep>,
    pub(crate) role: Option<String>,
    pub(crate) lock_deadline: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) patience: Duration,
    pub(crate) shows_statements: bool,
    pub(crate) edits: Edits,
    pub(crate) allows_newer: bool,
    pub(crate) uses_stored_downs: bool,
    pub(crate) stores_sql: bool,
    pub(crate) program: Option<(String, String)>,
}

/// What happens when only comments or formatting of an applied file were changed. See [`Migrations::with_edits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Edits {
    /// An error, as by sqlx.
    Refuse,
    /// A warning in the log.
    #[default]
    Warn,
    /// Nothing.
    Allow,
}

impl Migrations {
    /// The migrations that `sqlx::migrate!` built into the program, or others in memory, by [`Migrator::with_migrations`].
    #[must_use]
    pub fn new(migrator: &Migrator) -> Self {
        let mut ours = Migrator::with_migrations(migrator.iter().cloned().collect());
        // With the names that `sqlx.toml` gave to `sqlx::migrate!`.
        ours.dangerous_set_table_name(migrator.table_name.clone());
        ours.create_schemas.clone_from(&migrator.create_schemas);
        Self {
            migrator: ours,
            repeatables: BTreeMap::new(),
            steps: BTreeMap::new(),
            role: None,
            lock_deadline: LOCK_DEADLINE,
            lock_timeout: LOCK_TIMEOUT,
            patience: PATIENCE,
            shows_statements: false,
            edits: Edits::default(),
            allows_newer: false,
            uses_stored_downs: false,
            stores_sql: true,
            program: None,
        }
    }

    /// Reads a folder of migrations, with the repeatable files in its own folder `repeatable`. A file `sqlx.toml` beside it, such as sqlx reads, sets the table, the schemas to create, and the
    /// characters that do not count in checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the folder or `sqlx.toml` cannot be read, with everything that is wrong with the names of files.
    pub async fn from_dir(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let migrations = Self::new(&files::read(dir).await?);
        let repeatables = repeatable::read(dir)
            .map_err(|error| Error::Source { dir: dir.display().to_string(), reason: error.to_string() })?;
        Ok(repeatables.into_iter().fold(migrations, |all, (name, sql)| all.with_repeatable(name, sql)))
    }

    /// Records the migrations in another table than `_sqlx_migrations`, so that one database can have several lines of migrations.
    ///
    /// As in sqlx, the name may have a schema and quotes, and stands in SQL as it is. All lines have one lock.
    #[must_use]
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.migrator.dangerous_set_table_name(name.into());
        self
    }

    /// Runs each migration as this role, which then owns what the migration makes. The role that connects must be a member of it, and
    /// writes the record.
    #[must_use]
    pub fn with_role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// How long to try to take the migration lock (default 60 s).
    #[must_use]
    pub fn with_lock_deadline(mut self, deadline: Duration) -> Self {
        self.lock_deadline = deadline;
        self
    }

    /// How long a statement of a migration waits for a lock on a table or a row (default 5 s, at least 1 ms). Others who want the table
    /// queue behind it for as long. Then the migration is rolled back, and tried again as a whole.
    ///
    /// In a file outside of a transaction, a statement is tried again by itself. One that PostgreSQL refuses in a transaction waits without a
    /// limit: `CREATE INDEX CONCURRENTLY` waits for older transactions by locks, and would leave an invalid index.
    #[must_use]
    pub fn with_lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// How long a migration is tried that does not get its locks, or ends in a deadlock with others (default 10 min).
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Shows the first words of the statements that keep a migration waiting, in logs and errors (default off: they may hold secrets).
    #[must_use]
    pub fn with_blocking_statements(mut self, show: bool) -> Self {
        self.shows_statements = show;
        self
    }

    /// What happens when the comments or the formatting of a file are changed after it was applied (default: a warning). The history knows what
    /// the file said when it was applied, or when this crate first saw it. sqlx refuses such a file until its new checksum is on record
    /// ([`Migrations::rebless`]).
    #[must_use]
    pub fn with_edits(mut self, edits: Edits) -> Self {
        self.edits = edits;
        self
    }

    /// Whether a database that a newer program has migrated is taken as it is (default: no, [`Error::Unknown`]). With a migration to apply or
    /// to revert, it is refused all the same.
    #[must_use]
    pub fn with_newer_databases(mut self, allow: bool) -> Self {
        self.allows_newer = allow;
        self
    }

    /// Whether [`Migrations::down_to`] goes down over versions that this program does not know, or has no down file of, by the SQL that the
    /// database has on record (default: no). Refused if others than the role that connects may have written it.
    #[must_use]
    pub fn with_stored_downs(mut self, run: bool) -> Self {
        self.uses_stored_downs = run;
        self
    }

    /// Whether the history stores the SQL of migrations (default: yes). Without it, an error about a changed file shows no difference, and the
    /// database has no way back on record. Switch it off if files hold secrets.
    #[must_use]
    pub fn with_stored_sql(mut self, store: bool) -> Self {
        self.stores_sql = store;
        self
    }

    /// The program and its version in the history. By default, it is the `application_name` of the address, or the executable's name.
    #[must_use]
    pub fn with_program(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.program = Some((name.into(), version.into()));
        self
    }

    /// The newest version that the program has, 0 without any.
    #[must_use]
    pub fn supported_version(&self) -> i64 {
        self.ups().map(|migration| migration.version).max().unwrap_or(0)
    }

    /// The file of a version, up or down.
    pub(crate) fn file(&self, version: i64, down: bool) -> Option<&Migration> {
        self.migrator.iter().find(|migration| {
            migration.version == version && migration.migration_type.is_down_migration() == down
        })
    }

    pub(crate) fn ups(&self) -> impl Iterator<Item = &Migration> {
        self.migrator.iter().filter(|migration| !migration.migration_type.is_down_migration())
    }
}
