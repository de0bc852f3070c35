//! Restoring a dump, by the programs that are made for it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use db_embedded::Programs;
use sqlx::Executor;
use tokio::process::Command;

use super::error::CheckError;
use super::throwaway::Throwaway;
use crate::run::close;

/// The first bytes of what `pg_dump` writes as a custom format and as a tar file.
const ARCHIVES: [&[u8]; 2] = [b"PGDMP", b"toc.dat"];

/// Restores a dump, by the program that is made for its format, without what makes these extensions.
pub(super) async fn restore(
    throwaway: &Throwaway,
    database: &str,
    file: &Path,
    skipped: &[String],
) -> Result<(), CheckError> {
    let failed = |reason: String| CheckError::Dump { file: file.to_owned(), reason };
    let path = file.to_owned();
    let is_script = tokio::task::spawn_blocking(move || is_script(&path)).await;
    let is_script = is_script.map_err(|error| failed(error.to_string()))?;
    let address = format!("--dbname={}", throwaway.url(database));
    if is_script.map_err(|error| failed(error.to_string()))? {
        // Terse, since the context of an error shows rows.
        let psql = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse"];
        let psql =
            psql.map(OsStr::new).into_iter().chain([address.as_ref(), "--file".as_ref(), file.as_ref()]);
        program("psql", psql).await.map_err(failed)?;
    } else {
        let list = program("pg_restore", ["--list".as_ref(), file.as_os_str()]).await.map_err(failed)?;
        let is_kept = |line: &&str| !skipped.iter().any(|name| makes_extension(line, name));
        let kept: String = list.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
        let list = tempfile::NamedTempFile::new().map_err(|error| failed(error.to_string()))?;
        std::fs::write(list.path(), kept).map_err(|error| failed(error.to_string()))?;
        let options = ["--no-owner", "--no-privileges", "--exit-on-error", "--use-list"].map(OsStr::new);
        let rest = [list.path().as_ref(), address.as_ref(), file.as_os_str()];
        program("pg_restore", options.into_iter().chain(rest)).await.map_err(failed)?;
    }
    let mut session = throwaway.session(database).await?;
    let done = session.execute("analyze").await;
    close(session).await;
    done.map(drop).map_err(CheckError::database("analyze what was restored"))
}

/// Whether a dump is text, and neither an archive nor a folder.
fn is_script(file: &Path) -> std::io::Result<bool> {
    if file.is_dir() {
        return Ok(false);
    }
    let mut begin = Vec::new();
    File::open(file)?.take(16).read_to_end(&mut begin)?;
    Ok(!ARCHIVES.iter().any(|archive| begin.starts_with(archive)))
}

/// Whether a line of `pg_restore --list` is about an extension, or about its comment.
fn makes_extension(line: &str, name: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    [&["EXTENSION", "-", name][..], &["COMMENT", "-", "EXTENSION", name]]
        .iter()
        .any(|wanted| words.windows(wanted.len()).any(|words| words == *wanted))
}

/// Runs a program of PostgreSQL's, and returns what it printed, or why it failed.
async fn program<'a>(
    name: &'static str,
    args: impl IntoIterator<Item = &'a OsStr>,
) -> Result<String, String> {
    let here = tokio::task::spawn_blocking(move || Programs::find(None)?.path(name));
    // Packages of the server alone lack it; another one may be in the path.
    let path = here.await.ok().and_then(Result::ok).unwrap_or_else(|| PathBuf::from(name));
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| format!("{name} does not run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(reason(&String::from_utf8_lossy(&output.stderr)))
}

/// The line with the error, as far as it shows no value of a row.
fn reason(said: &str) -> String {
    let is_error = |line: &&str| line.contains("error:") || line.contains("ERROR:");
    let line = said.lines().find(is_error).or(said.lines().next()).unwrap_or("without a message");
    let shows_value = ["invalid input", "out of range", "malformed", "syntax error", "invalid byte"];
    match line.find('"') {
        Some(at) if shows_value.iter().any(|text| line.contains(text)) => line[..at].trim_end().to_owned(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{makes_extension, reason};

    #[test]
    fn the_reason_is_the_error_and_shows_no_value_of_a_row() {
        let of_rows = "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 3; 0 0 TABLE DATA cards app\n\
                       pg_restore: error: COPY failed for table \"cards\": ERROR:  invalid input syntax for type integer: \"4111\"\n\
                       CONTEXT:  COPY cards, line 1, column number: \"4111\"\n";
        let of_definitions = "pg_restore: error: could not execute query: ERROR:  role \"app\" does not exist\n\
                              Command was: create user mapping for app server s options (password '4111');\n\n\n";
        for (said, expected) in [
            (of_rows, "pg_restore: error: COPY failed for table"),
            (
                of_definitions,
                "pg_restore: error: could not execute query: ERROR:  role \"app\" does not exist",
            ),
            (
                "psql:dump:7: ERROR:  syntax error at or near \"4111\"\n",
                "psql:dump:7: ERROR:  syntax error at or near",
            ),
            (
                "psql:dump:7: ERROR:  invalid input value for enum mood: \"4111\"",
                "psql:dump:7: ERROR:  invalid input value for enum mood:",
            ),
            ("could not connect\n", "could not connect"),
            ("", "without a message"),
        ] {
            assert_eq!(reason(said), expected, "{said}");
        }
    }

    #[test]
    fn lines_of_an_extension_are_told_from_others() {
        for line in ["2; 3079 16385 EXTENSION - pg_trgm ", "3401; 0 0 COMMENT - EXTENSION pg_trgm "] {
            assert!(makes_extension(line, "pg_trgm"), "{line}");
        }
        for line in ["2; 3079 16385 EXTENSION - pg_trgm_more ", "5; 1259 16400 TABLE public pg_trgm app", ""]
        {
            assert!(!makes_extension(line, "pg_trgm"), "{line}");
        }
    }
}
