//! What sqlx's own configuration, `sqlx.toml`, says about a folder of migrations.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

/// The file beside the folder.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SqlxToml {
    migrate: Migrate,
}

/// Its section. The keys are those of sqlx 0.9; another one may change what sqlx would do, so it is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Migrate {
    pub(crate) create_schemas: BTreeSet<String>,
    pub(crate) table_name: Option<String>,
    pub(crate) ignored_chars: BTreeSet<char>,
    migrations_dir: Option<String>,
    /// For new files.
    #[serde(rename = "defaults")]
    _defaults: toml::Table,
}

/// Reads the section for a folder. Without the file, or when it names another folder, nothing is set.
///
/// # Errors
///
/// Why the file cannot be read.
pub(crate) fn read(dir: &Path) -> Result<Migrate, String> {
    let dir = dir.canonicalize().map_err(|error| error.to_string())?;
    let Some(parent) = dir.parent() else { return Ok(Migrate::default()) };
    let text = match std::fs::read_to_string(parent.join("sqlx.toml")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Migrate::default()),
        read => read.map_err(|error| format!("sqlx.toml beside it: {error}"))?,
    };
    let SqlxToml { migrate } =
        toml::from_str(&text).map_err(|error| format!("sqlx.toml beside it: {error}"))?;
    let named = parent.join(migrate.migrations_dir.as_deref().unwrap_or("migrations"));
    let is_named = named.canonicalize().is_ok_and(|named| named == dir);
    Ok(if is_named { migrate } else { Migrate::default() })
}
