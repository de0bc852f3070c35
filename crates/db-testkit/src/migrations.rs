//! The migrations of a test's database.

use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};
use sqlx::migrate::{MigrateError, Migrator};

use crate::error::Error;

/// Incremented when templates are made in another way, so that old ones are not used.
const FORMAT: u32 = 1;

/// The migrations of a test's database: a folder in sqlx's form, with the repeatable files of `db-migrate`, or a [`Migrator`].
#[derive(Debug)]
pub struct Migrations(Source);

#[derive(Debug)]
enum Source {
    Folder(PathBuf),
    Owned(Migrator),
    Static(&'static Migrator),
}

impl From<&Path> for Migrations {
    fn from(folder: &Path) -> Migrations {
        Migrations(Source::Folder(folder.to_path_buf()))
    }
}

impl From<PathBuf> for Migrations {
    fn from(folder: PathBuf) -> Migrations {
        Migrations(Source::Folder(folder))
    }
}

impl From<&str> for Migrations {
    fn from(folder: &str) -> Migrations {
        Migrations(Source::Folder(folder.into()))
    }
}

impl From<Migrator> for Migrations {
    fn from(migrator: Migrator) -> Migrations {
        Migrations(Source::Owned(migrator))
    }
}

/// For the result of `sqlx::migrate!`.
impl From<&'static Migrator> for Migrations {
    fn from(migrator: &'static Migrator) -> Migrations {
        Migrations(Source::Static(migrator))
    }
}

impl Migrations {
    /// Reads the folder, if a folder was given.
    pub(crate) async fn resolve(self) -> Result<Resolved, Error> {
        match self.0 {
            Source::Folder(folder) => {
                let read = async {
                    let migrator = Migrator::new(folder.as_path()).await?;
                    let repeatables =
                        repeatables(&folder).map_err(|error| MigrateError::Source(Box::new(error)))?;
                    Ok((migrator, repeatables))
                };
                let read = read.await.map_err(|source| Error::Migrations { folder, source });
                let (migrator, repeatables) = read?;
                Ok(Resolved { migrator: Given::Owned(migrator), repeatables })
            }
            Source::Owned(migrator) => {
                Ok(Resolved { migrator: Given::Owned(migrator), repeatables: Vec::new() })
            }
            Source::Static(migrator) => {
                Ok(Resolved { migrator: Given::Static(migrator), repeatables: Vec::new() })
            }
        }
    }
}

/// The files of a folder's own folder `repeatable`, in order of their names, as `db-migrate` applies them after the others.
fn repeatables(folder: &Path) -> io::Result<Vec<Repeatable>> {
    let entries = match fs::read_dir(folder.join("repeatable")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry?.path();
        if file.is_file() && file.extension().is_some_and(|extension| extension == "sql") {
            let sql = fs::read_to_string(&file)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
            files.push(Repeatable { file, sql });
        }
    }
    files.sort_by(|one, other| one.file.file_stem().cmp(&other.file.file_stem()));
    Ok(files)
}

#[derive(Debug)]
pub(crate) struct Repeatable {
    pub(crate) file: PathBuf,
    pub(crate) sql: String,
}

#[derive(Debug)]
pub(crate) struct Resolved {
    migrator: Given,
    pub(crate) repeatables: Vec<Repeatable>,
}

#[derive(Debug)]
enum Given {
    Owned(Migrator),
    Static(&'static Migrator),
}

impl Resolved {
    pub(crate) fn migrator(&self) -> &Migrator {
        match &self.migrator {
            Given::Owned(migrator) => migrator,
            Given::Static(migrator) => migrator,
        }
    }

    /// A digest of everything that decides the template's content. `home` separates maintenance databases, which cannot see
    /// each other's advisory locks.
    pub(crate) fn fingerprint(&self, home: i64) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{FORMAT} {home} {}", self.migrator().table_name));
        for migration in self.migrator().iter() {
            hash.update(format!(
                "\n{} {:?} {} {}",
                migration.version,
                migration.migration_type,
                migration.no_tx,
                const_hex::encode(&migration.checksum),
            ));
        }
        for Repeatable { file, sql } in &self.repeatables {
            let name = file.file_name().unwrap_or_default().display();
            hash.update(format!("\n{name} {} {sql}", sql.len()));
        }
        const_hex::encode(&hash.finalize()[..16])
    }
}
