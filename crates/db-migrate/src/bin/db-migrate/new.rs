//! The files of a new migration.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use time::OffsetDateTime;
use time::macros::format_description;

/// What an up file begins as.
pub(crate) const EMPTY: &str = "-- Write the migration here.\n";

/// Makes them, and returns their paths. `up` is the text of the up file. Versions are the time, in UTC, or numbers in a row if the folder has those; files are in
/// pairs, unless `simple`, or unless the folder has single files only.
pub(crate) fn files(
    folder: &Path,
    name: &str,
    up: &str,
    simple: bool,
    now: OffsetDateTime,
) -> anyhow::Result<Vec<PathBuf>> {
    let name = file_name(name)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut versions = Vec::new();
    let mut has_pairs = false;
    let mut has_single = false;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?.file_name();
        let Some((version, rest)) = entry.to_str().and_then(|entry| entry.split_once('_')) else { continue };
        let Some(rest) = rest.strip_suffix(".sql") else { continue };
        versions.extend(version.parse::<i64>().ok());
        let is_of_pair = [".up", ".down"].iter().any(|suffix| rest.strip_suffix(suffix).is_some());
        has_pairs |= is_of_pair;
        has_single |= !is_of_pair;
    }
    versions.sort_unstable();
    versions.dedup();
    let version = next(&versions, now)?;
    let suffixes: &[&str] =
        if simple || (has_single && !has_pairs) { &[".sql"] } else { &[".up.sql", ".down.sql"] };
    let mut made = Vec::new();
    for suffix in suffixes {
        let path = folder.join(format!("{version}_{name}{suffix}"));
        let text = if *suffix == ".down.sql" { "-- Takes back what the up file does.\n" } else { up };
        write(&path, text)?;
        made.push(path);
    }
    Ok(made)
}

/// The text of a file that is a step of the program, after these lines.
pub(crate) fn step(name: &str, before: &str) -> anyhow::Result<String> {
    if name.is_empty()
        || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\'' || c == '$')
    {
        bail!("the name of a step is one word, without quotes and dollar signs");
    }
    Ok(format!(
        "{before}-- db-migrate: step {name}\n-- If a new database has nothing to do, write `if exists (select …) then raise exception …; end if;`: then sqlx, tests and\n\
         -- programs without the step can make one.\ndo $$ begin\n    raise exception 'the program runs this, in its step {name}, and no other migrator';\nend $$;\n"
    ))
}

/// Makes a repeatable file, and returns its path.
pub(crate) fn repeatable(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = folder.join("repeatable");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let path = folder.join(format!("{}.sql", file_name(name)?));
    write(&path, "-- Write what may run again and again, such as `create or replace view`.\n")?;
    Ok(path)
}

/// A name for files.
fn file_name(name: &str) -> anyhow::Result<String> {
    let name: String = name.trim().chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    if name.is_empty() || name.contains(['/', '\\', '\0']) || name.to_lowercase().ends_with(".sql") {
        bail!("the name of a migration is a few words, without slashes and without .sql");
    }
    Ok(name)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Versions above are times.
const HIGHEST: i64 = 1_000_000;

/// The version after these.
fn next(versions: &[i64], now: OffsetDateTime) -> anyhow::Result<i64> {
    let after_newest =
        |newest: i64| newest.checked_add(1).context("there is no version after the newest one");
    match versions {
        [.., before, newest] if before + 1 == *newest && *newest < HIGHEST => after_newest(*newest),
        [only] if *only < HIGHEST => after_newest(*only),
        _ => {
            let time =
                now.format(format_description!("[year][month][day][hour][minute][second]"))?.parse()?;
            // Of a machine whose clock is ahead.
            Ok(match versions.last() {
                Some(newest) if *newest >= time => after_newest(*newest)?,
                _ => time,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use time::macros::datetime;

    use super::{EMPTY, files};

    fn made(folder: &Path, name: &str, simple: bool) -> Vec<String> {
        let made = files(folder, name, EMPTY, simple, datetime!(2026-11-28 22:30:05 UTC)).expect("made");
        made.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn files_are_of_the_kind_that_the_folder_has() {
        let folder = tempfile::tempdir().unwrap();
        let migrations = folder.path().join("migrations");

        let first = made(&migrations, "add users", false);
        assert_eq!(first, ["20261128223005_add_users.up.sql", "20261128223005_add_users.down.sql"]);
        // In the same second.
        assert_eq!(made(&migrations, "x", true), ["20261128223006_x.sql"]);

        let numbered = folder.path().join("numbered");
        assert_eq!(made(&numbered, "x", true).len(), 1);
        std::fs::remove_dir_all(&numbered).unwrap();
        std::fs::create_dir(&numbered).unwrap();
        std::fs::write(numbered.join("0007_a.sql"), "").unwrap();
        assert_eq!(made(&numbered, "b", false), ["8_b.sql"]);
        assert_eq!(made(&numbered, "c", false), ["9_c.sql"]);
    }

    #[test]
    fn names_with_slashes_and_no_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "  ", "../x", "a\\b", "x.sql"] {
            let made = files(folder.path(), name, EMPTY, false, datetime!(2026-11-28 22:30:05 UTC));
            assert!(made.is_err(), "{name:?}");
        }
    }
}
