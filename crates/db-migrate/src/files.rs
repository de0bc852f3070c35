//! A folder of migrations, and what is wrong with it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sqlx::migrate::{Migration, Migrator, ResolveConfig, ResolveWith};

use crate::sqlx_toml::Migrate;
use crate::{Error, sqlx_toml};

/// The first bytes of a migration that runs outside of a transaction.
const NO_TRANSACTION: &str = "-- no-transaction";

/// Reads a folder as sqlx does. What sqlx would do silently, or one at a time, is one error with all findings.
pub(crate) async fn read(dir: &Path) -> Result<Migrator, Error> {
    let unreadable = |reason: String| Error::Source { dir: dir.display().to_string(), reason };
    let findings = findings(dir).map_err(|error| unreadable(error.to_string()))?;
    if !findings.is_empty() {
        return Err(unreadable(findings.join("; ")));
    }
    let Migrate { table_name, create_schemas, ignored_chars, .. } =
        sqlx_toml::read(dir).map_err(unreadable)?;
    let mut config = ResolveConfig::new();
    config.ignore_chars(ignored_chars);
    let resolved = Migrator::new(ResolveWith(dir.to_owned(), config)).await;
    let mut migrator = resolved.map_err(|error| unreadable(error.to_string()))?;
    if let Some(table_name) = table_name {
        migrator.dangerous_set_table_name(table_name);
    }
    migrator.create_schemas = create_schemas.into_iter().map(Into::into).collect();
    Ok(migrator)
}

/// What is wrong with the names of the files, and what to do.
fn findings(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut versions: HashMap<(i64, bool), String> = HashMap::new();
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            findings.push(format!("the name of {} is not UTF-8: rename it", name.display()));
            continue;
        };
        if !name.to_lowercase().ends_with(".sql") || !fs::metadata(entry.path())?.is_file() {
            continue;
        }
        let parts =
            name.split_once('_').and_then(|(version, rest)| Some((version, rest.strip_suffix(".sql")?)));
        let Some((version, rest)) = parts else {
            // sqlx does not see the file.
            tracing::warn!(folder = %dir.display(), file = name, "the file is no migration: its name is not VERSION_name.sql");
            continue;
        };
        let Ok(version) = version.parse::<i64>() else {
            let advice = "name it VERSION_name.sql, with a version below 2^63";
            findings.push(format!("{name} does not begin with a version: {advice}"));
            continue;
        };
        if let Some(other) = versions.insert((version, rest.strip_suffix(".down").is_some()), name.to_owned())
        {
            findings.push(format!("{other} and {name} have one version: give one of them a later version"));
        }
    }
    Ok(findings)
}

/// Whether a file runs outside of a transaction, by sqlx's rule.
pub(crate) fn is_outside(sql: &str) -> bool {
    sql.starts_with(NO_TRANSACTION)
}

/// The line before a migration's first statement that almost says [`NO_TRANSACTION`], so that sqlx does not see it.
pub(crate) fn near_miss(migration: &Migration) -> Option<String> {
    let sql = migration.sql.as_str();
    if is_outside(sql) {
        return None;
    }
    let comments = sql.trim_start_matches('\u{feff}').lines().map(str::trim);
    let mut comments = comments.take_while(|line| {
        line.is_empty() || line.starts_with("--") || line.starts_with("/*") || line.starts_with('*')
    });
    comments.find(|line| is_like_the_directive(line)).map(str::to_owned)
}

fn is_like_the_directive(line: &str) -> bool {
    let letters: String =
        line.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_lowercase()).collect();
    ["notransaction", "notransactions", "notx"].contains(&letters.as_str())
}

#[cfg(test)]
mod tests {
    use sqlx::migrate::{Migration, MigrationType};
    use sqlx::{AssertSqlSafe, SqlSafeStr};

    use super::near_miss;

    fn missed(sql: &str) -> Option<String> {
        let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
        near_miss(&Migration::new(1, "x".into(), MigrationType::Simple, sql, false))
    }

    #[test]
    fn a_directive_that_sqlx_does_not_see_is_a_near_miss() {
        for sql in [
            "\u{feff}-- no-transaction\nvacuum",
            "-- Licence: MIT\n-- no-transaction\nvacuum",
            "--no-transaction\nvacuum",
            "\n-- no-transaction\nvacuum",
            "-- NO TRANSACTION\r\nvacuum",
            "/* no_transaction */\nvacuum",
        ] {
            assert!(missed(sql).is_some(), "{sql}");
        }
    }

    #[test]
    fn a_directive_a_sentence_and_a_line_after_the_first_statement_are_none() {
        for sql in [
            "-- no-transaction\nvacuum",
            "-- no-transaction is not needed here\nselect 1",
            "-- this needs no transaction\nselect 1",
            "select 1;\n-- no transaction\nselect 2",
            "",
        ] {
            assert_eq!(missed(sql), None, "{sql}");
        }
    }
}
