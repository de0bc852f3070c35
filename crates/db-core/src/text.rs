//! A statement's text, and what it leaves behind in the session.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{Execute, Postgres, SqlStr};

/// A statement taken apart, so that its text can be read before it is sent.
pub(crate) struct Text {
    sql: SqlStr,
    statement: Option<PgStatement>,
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
        Self { sql: query.sql(), statement, arguments: Some(arguments), persistent, is_raw }
    }

    /// Whether the session may be another one afterwards: in a transaction, with other settings, listening, with things
    /// prepared or declared. What a function does, such as `set_config` or `pg_advisory_lock`, is not seen.
    pub(crate) fn changes_session(&self) -> bool {
        self.is_raw || begins_with_session_keyword(self.sql.as_str())
    }
}

impl Execute<'_, Postgres> for Text {
    fn sql(self) -> SqlStr {
        self.sql
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

fn begins_with_session_keyword(sql: &str) -> bool {
    let (first, rest) = word(sql);
    let (second, rest) = word(rest);
    let is = |word: &str, keyword: &str| word.eq_ignore_ascii_case(keyword);
    if is(first, "set") {
        // Ends with the transaction.
        return !["local", "transaction", "constraints"].iter().any(|keyword| is(second, keyword));
    }
    if is(first, "create") {
        let (third, _) = word(rest);
        let temporary = |word| is(word, "temp") || is(word, "temporary");
        return temporary(second) || temporary(third);
    }
    is(first, "unlisten") || SESSION.iter().any(|keyword| is(first, keyword))
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
            "load 'x'",
            "discard all",
        ] {
            assert!(begins_with_session_keyword(sql), "{sql}");
        }
    }

    #[test]
    fn everyday_statements_and_what_ends_with_the_transaction_are_not_suspected() {
        for sql in [
            "select 1",
            "insert into begin_of_time values (1)",
            "update t set n = 1",
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
}
