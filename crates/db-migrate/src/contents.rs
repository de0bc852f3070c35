//! What a file says, apart from how it is written.

use std::fmt::Write;

use db_core::sql::{Kind, tokens};
use sha2::{Digest, Sha256};
use similar::TextDiff;
use sqlx::migrate::Migration;

use crate::directive::{counts, directive};

/// The lines of a difference that are shown.
const LINES: usize = 60;

/// The digest of what a file says. Comments, white space between tokens, a byte order mark, and the case of keywords and of
/// unquoted names do not count, as for PostgreSQL itself; nor do line ends, also in strings, since git converts them.
/// `-- no-transaction` counts, and so do directives that change what is run.
pub(crate) fn digest(migration: &Migration) -> Vec<u8> {
    let mut digest = Sha256::new();
    digest.update([u8::from(migration.no_tx)]);
    let sql = migration.sql.as_str();
    for token in tokens(sql.strip_prefix('\u{feff}').unwrap_or(sql)) {
        let text = match token.kind {
            Kind::Blank => match directive(token.text).filter(|text| counts(text)) {
                Some(text) => text.to_owned(),
                None => continue,
            },
            // The server folds other letters only in encodings of one byte.
            Kind::Word => token.text.to_ascii_lowercase(),
            Kind::Name | Kind::Literal | Kind::Other => token.text.replace("\r\n", "\n"),
        };
        // With its length, so that two tokens are not one.
        digest.update(text.len().to_le_bytes());
        digest.update(text);
    }
    digest.finalize().to_vec()
}

/// The lines in which a file differs from what was applied.
pub(crate) fn difference(applied: &str, file: &str) -> String {
    let diff = TextDiff::from_lines(applied, file);
    let unified = diff.unified_diff().context_radius(2).header("applied", "file").to_string();
    let lines: Vec<&str> = unified.lines().collect();
    let mut shown = lines[..lines.len().min(LINES)].join("\n");
    if lines.len() > LINES {
        // Writing to a string does not fail.
        let _ = write!(shown, "\n… and {} more lines", lines.len() - LINES);
    }
    shown
}

#[cfg(test)]
mod tests {
    use sqlx::migrate::{Migration, MigrationType};
    use sqlx::{AssertSqlSafe, SqlSafeStr};

    use super::{difference, digest};

    fn of(sql: &str) -> Vec<u8> {
        let no_tx = sql.starts_with("-- no-transaction");
        let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
        digest(&Migration::new(1, "x".into(), MigrationType::Simple, sql, no_tx))
    }

    const FILE: &str = "-- A shop.\ncreate table shop (id int, name text default 'a -- b');\n\
                        create function f() returns int language sql as $$\n select 1 -- one\n$$;\n";

    #[test]
    fn comments_white_space_line_ends_and_the_case_of_keywords_do_not_count() {
        let same = [
            FILE.replace("A shop.", "The shops: all of them; 'here'."),
            FILE.replace("-- A shop.\n", ""),
            FILE.replace("(id int,", "(\n    id int, /* of /* all */ shops */\n   "),
            FILE.replace("create table", "CREATE TABLE").replace("int,", "INT,"),
            FILE.replace('\n', "\r\n"),
            format!("\u{feff}{FILE}"),
            FILE.trim_end().to_owned(),
            format!("{FILE}\n\n-- The end"),
        ];
        for text in same {
            assert_eq!(of(&text), of(FILE), "{text}");
        }
    }

    #[test]
    fn literals_names_and_bodies_count_and_so_does_the_directive() {
        let changed = [
            FILE.replace("a -- b", "a -- c"),
            FILE.replace("'a -- b'", "'A -- b'"),
            FILE.replace("id int", "id bigint"),
            FILE.replace("name text", "\"Name\" text"),
            FILE.replace("-- one", "-- two"),
            FILE.replace("select 1", "select  1"),
            FILE.replace("create function", "create or replace function"),
            format!("-- no-transaction\n{FILE}"),
            format!("{FILE}select 1;"),
        ];
        for text in changed {
            assert_ne!(of(&text), of(FILE), "{text}");
        }
        assert_ne!(of("select 'ab'"), of("select 'a' 'b'"));
        assert_ne!(of("select ab"), of("select a b"));
    }

    #[test]
    fn a_long_difference_is_cut() {
        let (old, new) = ("old\n".repeat(100), "new\n".repeat(100));

        let shown = difference(&old, &new);

        assert!(shown.starts_with("--- applied\n+++ file\n@@"), "{shown}");
        assert_eq!(shown.lines().count(), 61);
        assert!(shown.ends_with("… and 143 more lines"), "{shown}");
    }
}
