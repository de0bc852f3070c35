//! The migrations of a test's database.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sqlx::migrate::Migrator;

use crate::error::Error;

/// Incremented when templates are made in another way, so that old ones are not used.
const FORMAT: u32 = 1;

/// The migrations of a test's database: a folder in sqlx's form, or a [`Migrator`].
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
        let migrator = match self.0 {
            Source::Folder(folder) => Resolved::Owned(
                Migrator::new(folder.as_path())
                    .await
                    .map_err(|source| Error::Migrations { folder, source })?,
            ),
            Source::Owned(migrator) => Resolved::Owned(migrator),
            Source::Static(migrator) => Resolved::Static(migrator),
        };
        Ok(migrator)
    }
}

#[derive(Debug)]
pub(crate) enum Resolved {
    Owned(Migrator),
    Static(&'static Migrator),
}

impl Resolved {
    pub(crate) fn migrator(&self) -> &Migrator {
        match self {
            Resolved::Owned(migrator) => migrator,
            Resolved::Static(migrator) => migrator,
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
        const_hex::encode(&hash.finalize()[..16])
    }
}
