//! Where the tables come from.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sqlx::migrate::Migrator;

use crate::error::Error;

/// Changes when templates are made in another way, so that the old ones are not used.
const FORMAT: u32 = 1;

/// What a test's database is migrated with: a folder in sqlx's form, or a [`Migrator`].
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

/// For what `sqlx::migrate!` makes.
impl From<&'static Migrator> for Migrations {
    fn from(migrator: &'static Migrator) -> Migrations {
        Migrations(Source::Static(migrator))
    }
}

impl Migrations {
    /// Reads the folder, if it is one.
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

    /// Everything that decides what is in the database afterwards. `home` tells databases apart that cannot see each
    /// other's advisory locks.
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
