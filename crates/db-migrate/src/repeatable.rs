//! Repeatable files: views, functions and the like, which are applied again whenever their text says something else.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use sqlx::migrate::{Migration, MigrationType};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::look::newest;
use crate::status::{Look, State};
use crate::table::hex;
use crate::{Migrations, contents};

/// The folder of repeatable files, in that of the migrations. sqlx does not look into it.
const FOLDER: &str = "repeatable";

/// A repeatable file and its state in one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Repeatable {
    /// Its name, without `.sql`.
    pub name: String,
    /// [`State::Pending`] or [`State::Applied`].
    pub state: State,
}

impl Migrations {
    /// Adds a repeatable file, or replaces the one of this name. [`Migrations::from_dir`] reads them from the folder's own folder
    /// `repeatable`.
    ///
    /// They are applied in the order of their names, each in a transaction, after the versioned files of a run to the newest version, if what
    /// they say is not what was applied last: see the crate's documentation.
    ///
    /// ```
    /// # db_testkit::run(async |db| {
    /// # let config = db_core::Config::from_url(&db.url()).unwrap();
    /// # let migrations = db_migrate::Migrations::new(&db_migrate::Migrator::with_migrations(Vec::new()));
    /// let sql = "create or replace view answers as select 42 as answer"; // or include_str!("../migrations/repeatable/answers.sql")
    /// let report = migrations.with_repeatable("answers", sql).up(&config).await?;
    ///
    /// assert_eq!(report.repeated, ["answers"]);
    /// # Ok::<_, db_migrate::Error>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn with_repeatable(mut self, name: impl Into<String>, sql: impl Into<String>) -> Self {
        let name = name.into();
        let sql = AssertSqlSafe(sql.into()).into_sql_str();
        let no_tx = crate::files::is_outside(sql.as_str());
        let file = Migration::new(0, name.clone().into(), MigrationType::Simple, sql, no_tx);
        self.repeatables.insert(name, file);
        self
    }

    /// The repeatable files that a run to a version would apply after the versioned ones, as files of the version that the database has then.
    ///
    /// Those of a newer database are left alone: its program has its own. So are all, if nothing else is to do and this role may not read what was
    /// applied: it is no migrating one.
    pub(crate) fn to_repeat(&self, look: &Look, to: Option<i64>) -> Vec<Migration> {
        let version = self.supported_version();
        if to.is_some_and(|to| to < version) || newest(look.statuses.iter()) > version {
            return Vec::new();
        }
        if look.hides_repeated && !look.statuses.iter().any(|status| status.is_to_do(to)) {
            if !self.repeatables.is_empty() {
                tracing::warn!(
                    "whether repeatable files are to be applied is not known: this role may not read the history of migrations"
                );
            }
            return Vec::new();
        }
        let pending = self.repeatables.values().filter(|file| !is_current(file, look));
        pending.map(|file| Migration { version, ..file.clone() }).collect()
    }

    pub(crate) fn repeatables(&self, look: &Look) -> Vec<Repeatable> {
        let state = |file| if is_current(file, look) { State::Applied } else { State::Pending };
        let those = self.repeatables.iter();
        those.map(|(name, file)| Repeatable { name: name.clone(), state: state(file) }).collect()
    }
}

/// Whether a file says what was applied last under its name.
pub(crate) fn is_current(file: &Migration, look: &Look) -> bool {
    look.repeated.get(&*file.description).is_some_and(|digest| *digest == hex(&contents::digest(file)))
}

/// The repeatable files of a folder of migrations.
pub(crate) fn read(dir: &Path) -> io::Result<Vec<(String, String)>> {
    let folder = dir.join(FOLDER);
    let named =
        |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| named(&folder, error))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| named(&folder, error))?.path();
        let in_file = |error| named(&path, error);
        if !fs::metadata(&path).map_err(in_file)?.is_file() {
            continue;
        }
        match path.file_name().and_then(|name| name.to_str()).map(|name| (name, name.strip_suffix(".sql"))) {
            Some((_, Some(name))) => {
                files.push((name.to_owned(), fs::read_to_string(&path).map_err(in_file)?));
            }
            Some((name, None)) => {
                tracing::warn!(folder = %folder.display(), file = name, "the file is not applied: its name does not end with .sql");
            }
            None => return Err(in_file(io::Error::other("its name is not UTF-8: rename it"))),
        }
    }
    Ok(files)
}
