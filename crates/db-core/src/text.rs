//! A statement's text, and what it leaves behind in the session.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{AssertSqlSafe, Execute, Postgres, SqlSafeStr, SqlStr};

use crate::pooler::Needs;

/// A statement taken apart, so that its text can be read before it is sent. It is sent from where it is, as `&mut Text`: the
/// driver's future holds what it is given, and is made for every statement.
pub(crate) struct Text {
    sql: SqlStr,
    /// What is sent in place of the text, if it is not the text itself.
    sent_as: Option<SqlStr>,
    statement: Option<PgStatement>,
    /// None once they were sent.
    arguments: Option<Result<Option<PgArguments>, BoxDynError>>,
    persistent: bool,
    /// Sent by the simple protocol, and maybe more than one statement.
    is_raw: bool,
}

impl Text {
    pub(crate) fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let arguments = query.take_arguments();
        let is_raw = matches!(arguments, Ok(None));
        let statement = query.statement().cloned();
        let persistent = query.persistent();
        // A clone of text that the caller owns is shared from here on, so that further ones are cheap.
        let sql = query.sql().clone();
        Self { sql, sent_as: None, statement, arguments: Some(arguments), persistent, is_raw }
    }

    pub(crate) fn sql_str(&self) -> &SqlStr {
        &self.sql
    }

    pub(crate) fn as_str(&self) -> &str {
        self.sql.as_str()
    }

    /// Has it sent under another text, if it is one that is prepared and kept.
    pub(crate) fn mark(&mut self, mark: &str) {
        if self.persistent && matches!(self.arguments, Some(Ok(Some(_)))) {
            self.sent_as = Some(AssertSqlSafe(format!("{} {mark}", self.sql.as_str())).into_sql_str());
        }
    }

    /// What it needs to be sent once more, if it is one that is prepared and kept: only those have plans that become stale.
    pub(crate) fn spare(&self) -> Option<PgArguments> {
        match &self.arguments {
            Some(Ok(Some(arguments))) if self.persistent => Some(arguments.clone()),
            _ => None,
        }
    }

    /// Makes it what it was before it was sent.
    pub(crate) fn refill(&mut self, spare: PgArguments) {
        self.arguments = Some(Ok(Some(spare)));
    }

    /// Whether the session may be another one afterwards: in a transaction, with other settings, listening, with things
    /// prepared or declared. What a function does, such as `set_config` or `pg_advisory_lock`, is not seen.
    pub(crate) fn changes_session(&self) -> bool {
        self.is_raw || begins_with_session_keyword(self.sql.as_str())
    }
}

impl<'q> Execute<'q, Postgres> for &'q mut Text {
    fn sql(self) -> SqlStr {
        self.sent_as.as_ref().unwrap_or(&self.sql).clone()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// So much of a statement is shown to people.
const SHOWN: usize = 200;

/// A statement as it is shown in logs and errors: on one line, cut short, and without the literals in it, which may be
/// anything, a password in `ALTER ROLE` included.
pub(crate) fn shown(sql: &str) -> String {
    let mut shown = String::new();
    let mut rest = sql.trim();
    while let Some(character) = rest.chars().next() {
        if shown.len() >= SHOWN {
            shown.push('…');
            break;
        }
        let (seen, length) = match character {
            '\'' => ("'…'", quoted(rest, shown.ends_with(['E', 'e']))),
            // An identifier in quotes, in which an apostrophe means nothing.
            '"' => {
                let length = rest[1..].find('"').map_or(rest.len(), |end| end + 2);
                (&rest[..length], length)
            }
            '-' if rest.starts_with("--") => (" ", rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (" ", rest.len() - after_comment(rest).len()),
            '$' => match dollar_quoted(rest) {
                Some(length) => ("'…'", length),
                None => ("$", 1),
            },
            space if space.is_whitespace() => (" ", rest.len() - rest.trim_start().len()),
            other => (&rest[..other.len_utf8()], other.len_utf8()),
        };
        if seen != " " || !shown.ends_with(' ') {
            shown.push_str(seen);
        }
        rest = &rest[length..];
    }
    shown
}

/// The length of a literal in single quotes. A doubled quote is part of it, and after `E`, so is one after a backslash.
fn quoted(literal: &str, escapes: bool) -> usize {
    let mut characters = literal.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' if escapes => drop(characters.next()),
            '\'' if characters.peek().is_some_and(|(_, next)| *next == '\'') => drop(characters.next()),
            '\'' => return at + 1,
            _ => {}
        }
    }
    literal.len()
}

/// The length of a literal in dollar quotes, if it is one, and not a parameter.
fn dollar_quoted(literal: &str) -> Option<usize> {
    let tag = literal[1..].find('$')? + 2;
    let name = &literal[1..tag - 1];
    let is_tag = name.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    is_tag.then(|| literal[tag..].find(&literal[..tag]).map_or(literal.len(), |end| 2 * tag + end))
}

/// Commands of PostgreSQL's manual, part VI, whose effect outlives the statement but is not stored in the database.
const SESSION: [&str; 17] = [
    "abort",
    "begin",
    "close",
    "commit",
    "deallocate",
    "declare",
    "discard",
    "end",
    "listen",
    "load",
    "move",
    "prepare",
    "release",
    "reset",
    "rollback",
    "savepoint",
    "start",
];

/// What nearly every statement begins with, and what changes nothing.
const EVERYDAY: [&str; 5] = ["select", "insert", "update", "delete", "with"];

fn begins_with_session_keyword(sql: &str) -> bool {
    let is_everyday = |keyword: &&str| {
        let (first, rest) = sql.as_bytes().split_at(keyword.len().min(sql.len()));
        first.eq_ignore_ascii_case(keyword.as_bytes()) && rest.first().is_some_and(u8::is_ascii_whitespace)
    };
    if EVERYDAY.iter().any(is_everyday) {
        return false;
    }
    let (first, rest) = word(sql.trim_start_matches(|c: char| c == ';' || c.is_whitespace()));
    let (second, rest) = word(rest);
    let is = |word: &str, keyword: &str| word.eq_ignore_ascii_case(keyword);
    if is(first, "set") {
        // Ends with the transaction.
        return !["local", "transaction", "constraints"].iter().any(|keyword| is(second, keyword));
    }
    if is(first, "create") {
        // `CREATE OR REPLACE TEMP VIEW` has it in the fourth place.
        let (third, rest) = word(rest);
        let (fourth, _) = word(rest);
        return [second, third, fourth].iter().any(|word| is(word, "temp") || is(word, "temporary"));
    }
    is(first, "unlisten") || SESSION.iter().any(|keyword| is(first, keyword))
}

/// What a statement needs of its session that a pooler would not keep for it.
pub(crate) fn needs_session(sql: &str) -> Option<Needs> {
    let (first, rest) = word(sql.trim_start_matches(|c: char| c == ';' || c.is_whitespace()));
    let (second, _) = word(rest);
    let first = first.to_ascii_lowercase();
    match &*first {
        "listen" | "unlisten" => Some(Needs::Listen),
        "set" | "create" if !begins_with_session_keyword(sql) => None,
        "set" | "reset" | "discard" | "load" => Some(Needs::Setting),
        // Two-phase commit is the server's affair.
        "prepare" if second.eq_ignore_ascii_case("transaction") => None,
        "prepare" | "deallocate" => Some(Needs::Prepared),
        "create" => (!has_words(sql, ["on", "commit", "drop"])).then_some(Needs::Temporary),
        "declare" => has_words(sql, ["cursor", "with", "hold"]).then_some(Needs::Cursor),
        _ => locks_for_session(sql).then_some(Needs::Lock),
    }
}

fn has_words(sql: &str, words: [&str; 3]) -> bool {
    let said: Vec<_> = sql.split_ascii_whitespace().map(|word| word.trim_end_matches(';')).collect();
    said.windows(3).any(|three| three.iter().zip(words).all(|(word, other)| word.eq_ignore_ascii_case(other)))
}

/// Whether it calls one of the functions of PostgreSQL's manual, table 9.105 "Advisory Lock Functions", that do not end with
/// the transaction.
fn locks_for_session(sql: &str) -> bool {
    const ADVISORY: &str = "advisory_";
    let bytes = sql.as_bytes();
    let found = bytes.windows(ADVISORY.len()).enumerate();
    let mut found = found.filter(|(_, window)| window.eq_ignore_ascii_case(ADVISORY.as_bytes()));
    found.any(|(at, _)| {
        let name = &sql[at + ADVISORY.len()..];
        let (name, rest) =
            name.split_at(name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len()));
        let before = sql[..at].to_ascii_lowercase();
        (before.ends_with("pg_") || before.ends_with("pg_try_"))
            && !name.to_ascii_lowercase().starts_with("xact_")
            && rest.trim_start().starts_with('(')
    })
}

/// The first word and what follows it, past white space and comments.
fn word(sql: &str) -> (&str, &str) {
    let mut rest = sql.trim_start();
    loop {
        rest = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, rest)| rest)
        } else if rest.starts_with("/*") {
            after_comment(rest)
        } else {
            break;
        }
        .trim_start();
    }
    rest.split_at(rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len()))
}

/// Block comments nest, as the SQL standard has it.
fn after_comment(sql: &str) -> &str {
    let mut depth = 0;
    let mut rest = sql;
    loop {
        if let Some(inner) = rest.strip_prefix("/*") {
            depth += 1;
            rest = inner;
        } else if let Some(outer) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = outer;
            if depth == 0 {
                return rest;
            }
        } else {
            let mut characters = rest.chars();
            if characters.next().is_none() {
                return "";
            }
            rest = characters.as_str();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_outlive_themselves_are_seen_through_comments_and_case() {
        for sql in [
            "BEGIN",
            "  begin isolation level serializable",
            "-- a comment\n/* another /* nested */ one */ Start Transaction",
            "commit;",
            "ROLLBACK TO SAVEPOINT a",
            "set search_path = x",
            "SET SESSION time zone 'UTC'",
            "reset all",
            "listen x",
            "UNLISTEN *",
            "prepare p as select 1",
            "declare c cursor for select 1",
            "create temp table t (n int)",
            "create local temporary table t (n int)",
            "create or replace temp view v as select 1",
            "; begin",
            "load 'x'",
            "discard all",
            "/* select */ begin",
        ] {
            assert!(begins_with_session_keyword(sql), "{sql}");
        }
    }

    #[test]
    fn what_is_shown_of_a_statement_is_one_line_without_its_literals() {
        for (sql, seen) in [
            ("select 1", "select 1"),
            ("  select\n    n\n  from t ", "select n from t"),
            ("alter role a password 'hunter2'", "alter role a password '…'"),
            ("select 'it''s hunter2', $1", "select '…', $1"),
            (r"select E'\'hunter2', 1", "select E'…', 1"),
            ("select $$hunter2$$, $2", "select '…', $2"),
            ("select $a$hunter$$2$a$, x", "select '…', x"),
            ("select 'never closed hunter2", "select '…'"),
            ("select $1 + $2", "select $1 + $2"),
            (
                r"select 1 where a like $1 escape '\' and b = 'hunter2'",
                "select 1 where a like $1 escape '…' and b = '…'",
            ),
            ("select 1 -- don't\n, 'hunter2'", "select 1 , '…'"),
            ("select /* don't */ 'hunter2'", "select '…'"),
            ("select \"O'Brien\", 'hunter2'", "select \"O'Brien\", '…'"),
        ] {
            assert_eq!(shown(sql), seen);
        }
        assert!(shown(&"ü".repeat(1000)).chars().count() < 210);
    }

    #[test]
    fn everyday_statements_and_what_ends_with_the_transaction_are_not_suspected() {
        for sql in [
            "select 1",
            "insert into begin_of_time values (1)",
            "update t set n = 1",
            "SELECT\n1",
            "with",
            "/* begin */ delete from t",
            "-- begin\nselect 1",
            "create table temporary_things (n int)",
            "set local statement_timeout = '1s'",
            "SET TRANSACTION READ ONLY",
            "set constraints all deferred",
            "with t as (select 1) select * from t",
            "",
            "/* not closed",
            "--",
        ] {
            assert!(!begins_with_session_keyword(sql), "{sql}");
        }
    }

    #[test]
    fn what_a_pooler_would_leave_to_others_is_seen() {
        for (sql, needs) in [
            ("listen a", Needs::Listen),
            ("/* a */ UNLISTEN *", Needs::Listen),
            ("select pg_advisory_lock(1)", Needs::Lock),
            ("select n, PG_TRY_ADVISORY_LOCK_SHARED (1, 2) from t", Needs::Lock),
            ("select pg_advisory_unlock_all()", Needs::Lock),
            ("with a as (select pg_advisory_unlock($1)) select * from a", Needs::Lock),
            ("set search_path = x", Needs::Setting),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Needs::Setting),
            ("reset all", Needs::Setting),
            ("; discard all", Needs::Setting),
            ("load 'x'", Needs::Setting),
            ("prepare p as select 1", Needs::Prepared),
            ("deallocate p", Needs::Prepared),
            ("create temp table t (n int)", Needs::Temporary),
            ("create temp table t (n int) on commit delete rows", Needs::Temporary),
            ("declare c cursor with hold for select 1", Needs::Cursor),
        ] {
            assert_eq!(needs_session(sql), Some(needs), "{sql}");
        }
    }

    #[test]
    fn what_ends_with_the_transaction_passes_a_pooler() {
        for sql in [
            "select 1",
            "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
            "select * from pg_stat_activity where query like '%pg_advisory_lock%'",
            "select my_advisory_lock(1)",
            "select 'ä', ü.pg_advisory from ü",
            "set local statement_timeout = '1s'",
            "set transaction read only",
            "begin",
            "prepare transaction 'a'",
            "commit prepared 'a'",
            "create table t (n int)",
            "create temp table t (n int) on commit drop;",
            "declare c cursor for select 1",
            "notify a, 'b'",
            "",
        ] {
            assert_eq!(needs_session(sql), None, "{sql}");
        }
    }
}
