//! The effects of a statement on its session.
//!
//! Only the text is analyzed: the effects of a function's body are not seen.

use super::lexer::{Kind, Token, tokens};
use crate::pooler::Needs;

/// How long a statement's effect on its session lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lasts {
    /// The session is not affected. Effects on stored data do not count.
    Nothing,
    /// Until the end of the transaction.
    Transaction,
    /// Until something undoes it. Unknown statements count as this.
    Session,
}

use Lasts::{Nothing, Session};

/// The effect of a statement on its session, as far as its text tells: what a function does is not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// How long it lasts.
    pub lasts: Lasts,
    /// What the statement needs of its session that a pooler does not keep.
    pub needs: Option<Needs>,
}

const fn effect(lasts: Lasts, needs: Option<Needs>) -> Effect {
    Effect { lasts, needs }
}

/// The commands of PostgreSQL's manual, part VI "SQL Commands", by their first word. For some, later words matter, too:
/// see [`by_keyword`].
const COMMANDS: &[(&str, Effect)] = &[
    ("abort", effect(Session, None)),
    ("alter", effect(Nothing, None)),
    ("analyse", effect(Nothing, None)),
    ("analyze", effect(Nothing, None)),
    ("begin", effect(Session, None)),
    // A procedure may do anything.
    ("call", effect(Session, None)),
    ("checkpoint", effect(Nothing, None)),
    // Cursors end with their transaction; those that do not were recorded by their `DECLARE`.
    ("close", effect(Nothing, None)),
    ("cluster", effect(Nothing, None)),
    ("comment", effect(Nothing, None)),
    ("commit", effect(Session, None)),
    // The driver supports it only through calls of its own.
    ("copy", effect(Session, None)),
    ("create", effect(Nothing, None)),
    ("deallocate", effect(Session, Some(Needs::Prepared))),
    ("declare", effect(Lasts::Transaction, None)),
    ("delete", effect(Nothing, None)),
    ("discard", effect(Session, Some(Needs::Setting))),
    ("do", effect(Session, None)),
    ("drop", effect(Nothing, None)),
    ("end", effect(Session, None)),
    ("execute", effect(Session, None)),
    // With ANALYZE, it runs the explained statement.
    ("explain", effect(Session, None)),
    ("fetch", effect(Nothing, None)),
    ("grant", effect(Nothing, None)),
    ("import", effect(Nothing, None)),
    ("insert", effect(Nothing, None)),
    ("listen", effect(Session, Some(Needs::Listen))),
    ("load", effect(Session, Some(Needs::Setting))),
    ("lock", effect(Lasts::Transaction, None)),
    ("merge", effect(Nothing, None)),
    ("move", effect(Nothing, None)),
    ("notify", effect(Nothing, None)),
    ("prepare", effect(Session, Some(Needs::Prepared))),
    ("reassign", effect(Nothing, None)),
    ("refresh", effect(Nothing, None)),
    ("reindex", effect(Nothing, None)),
    ("release", effect(Session, None)),
    ("reset", effect(Session, Some(Needs::Setting))),
    ("revoke", effect(Nothing, None)),
    ("rollback", effect(Session, None)),
    ("savepoint", effect(Session, None)),
    ("security", effect(Nothing, None)),
    ("select", effect(Nothing, None)),
    ("set", effect(Session, Some(Needs::Setting))),
    ("show", effect(Nothing, None)),
    ("start", effect(Session, None)),
    ("table", effect(Nothing, None)),
    ("truncate", effect(Nothing, None)),
    ("unlisten", effect(Session, Some(Needs::Listen))),
    ("update", effect(Nothing, None)),
    ("vacuum", effect(Nothing, None)),
    ("values", effect(Nothing, None)),
    ("with", effect(Nothing, None)),
];

/// The first words of nearly all statements.
const COMMON: [&str; 5] = ["select", "insert", "update", "delete", "with"];

/// Whether the text may change its session: begin a transaction, change settings, listen, lock, or prepare, declare or create
/// something for the session only.
pub(super) fn changes_session(sql: &str) -> bool {
    !is_plain(sql) && effects(sql).iter().any(|effect| effect.lasts == Session)
}

/// What a text needs of its session that a pooler does not keep. Only a raw text may contain several statements.
pub(crate) fn needs_session(sql: &str, is_raw: bool) -> Option<Needs> {
    if !is_raw && is_plain(sql) {
        return None;
    }
    effects(sql).iter().find_map(|effect| effect.needs)
}

/// Whether a text is a common statement without any word that could change the session. This check does not split the text into
/// tokens.
fn is_plain(sql: &str) -> bool {
    let bytes = after_blanks(sql).as_bytes();
    let is_common = COMMON.iter().any(|keyword| {
        let (first, rest) = bytes.split_at(keyword.len().min(bytes.len()));
        first.eq_ignore_ascii_case(keyword.as_bytes()) && rest.first().is_some_and(u8::is_ascii_whitespace)
    });
    // Finds `set_config`, `pg_advisory_…` and `pg_try_advisory_…` except `…_xact_…`, and `temp`, `temporary`, `pg_temp`.
    let mut candidates = memchr::memchr3_iter(b'_', b'p', b'P', bytes);
    is_common
        && !candidates.any(|at| {
            let (before, after) = (&bytes[..at], &bytes[at + 1..]);
            if bytes[at] == b'_' {
                (ends_with(before, b"advisory") && !begins_with(after, b"xact_"))
                    || (ends_with(before, b"set") && begins_with(after, b"config"))
            } else {
                ends_with(before, b"tem")
                    && !before[..at - 3].last().is_some_and(u8::is_ascii_alphanumeric)
                    && (begins_with(after, b"orary") || !after.first().is_some_and(u8::is_ascii_alphanumeric))
            }
        })
}

/// The text from its first word on. Comments before a statement, such as a query's name, are common.
fn after_blanks(sql: &str) -> &str {
    if sql.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return sql;
    }
    let blank: usize =
        tokens(sql).take_while(|token| token.kind == Kind::Blank).map(|token| token.text.len()).sum();
    &sql[blank..]
}

fn ends_with(bytes: &[u8], word: &[u8]) -> bool {
    bytes.len() >= word.len() && bytes[bytes.len() - word.len()..].eq_ignore_ascii_case(word)
}

fn begins_with(bytes: &[u8], word: &[u8]) -> bool {
    bytes.len() >= word.len() && bytes[..word.len()].eq_ignore_ascii_case(word)
}

/// The effects of a text's statements, in order.
fn effects(sql: &str) -> Vec<Effect> {
    let tokens: Vec<_> = tokens(sql).filter(|token| token.kind != Kind::Blank).collect();
    tokens.split(|token| token.text == ";").map(effect_of).collect()
}

/// The effect of one statement: its longest-lasting effect, and its first need.
pub(super) fn effect_of(statement: &[Token<'_>]) -> Effect {
    let open = statement.iter().take_while(|token| token.text == "(").count();
    let statement = &statement[open..];
    let calls = (0..statement.len()).map(|at| of_call(&statement[at..], &statement[..at]));
    let all = [by_keyword(statement), of_temporary(statement)].into_iter().chain(calls);
    all.reduce(|a, b| effect(a.lasts.max(b.lasts), a.needs.or(b.needs))).expect("at least two effects")
}

fn by_keyword(statement: &[Token<'_>]) -> Effect {
    let Some((first, rest)) = statement.split_first() else { return effect(Nothing, None) };
    let keywords = |keywords: &[&str]| {
        rest.len() >= keywords.len() && rest.iter().zip(keywords).all(|(token, keyword)| token.is(keyword))
    };
    // `SET local.x` sets a parameter of that name, and so does `SET local = x`.
    let is_transaction_scope = || match rest {
        [way, next, ..] => {
            way.is_any(&["local", "transaction", "constraints"])
                && matches!(next.kind, Kind::Word | Kind::Name)
                && !next.is("to")
        }
        _ => false,
    };
    match COMMANDS.iter().find(|(keyword, _)| first.is(keyword)) {
        Some(("set", _)) if is_transaction_scope() => effect(Lasts::Transaction, None),
        // Two-phase commit survives the session.
        Some(("prepare", _)) if keywords(&["transaction"]) => effect(Session, None),
        Some(("declare", _)) if has_keywords(rest, &["with", "hold"]) => effect(Session, Some(Needs::Cursor)),
        Some((_, effect)) => *effect,
        None => effect(Session, None),
    }
}

/// Whether the statement contains these keywords in a row.
fn has_keywords(statement: &[Token<'_>], keywords: &[&str]) -> bool {
    statement
        .windows(keywords.len())
        .any(|window| window.iter().zip(keywords).all(|(token, keyword)| token.is(keyword)))
}

/// The effect of creating session-local objects: by `CREATE TEMP`, by `INTO TEMP`, or in the schema `pg_temp`.
fn of_temporary(statement: &[Token<'_>]) -> Effect {
    let is_temporary = |tokens: &[Token<'_>]| {
        let skipped =
            tokens.iter().take_while(|token| token.is_any(&["or", "replace", "local", "global"])).count();
        tokens.get(skipped).is_some_and(|token| token.is_any(&["temp", "temporary"]))
    };
    let is_own_schema = |token: &Token<'_>| {
        token.name().is_some_and(|name| name == "pg_temp" || name.starts_with("pg_temp_"))
    };
    let creates = statement.first().is_some_and(|first| first.is("create"));
    let is_created = creates && (is_temporary(&statement[1..]) || statement.iter().any(is_own_schema));
    let is_selected_into = statement.iter().enumerate().any(|(at, token)| {
        let rest = &statement[at + 1..];
        token.is("into")
            && !statement[..at].last().is_some_and(|before| before.is_any(&["insert", "merge"]))
            && (is_temporary(rest) || rest.first().is_some_and(is_own_schema))
    });
    if is_created && has_keywords(statement, &["on", "commit", "drop"]) {
        effect(Lasts::Transaction, None)
    } else if is_created || is_selected_into {
        effect(Session, Some(Needs::Temporary))
    } else {
        effect(Nothing, None)
    }
}

/// The effect of a call of the server's functions that change the session: `set_config` (PostgreSQL's manual, chapter 9.28.1)
/// and those of chapter 9.28.10 "Advisory Lock Functions" whose locks do not end with the transaction.
fn of_call(call: &[Token<'_>], before: &[Token<'_>]) -> Effect {
    let nothing = effect(Nothing, None);
    let [name, open, arguments @ ..] = call else { return nothing };
    if open.text != "(" {
        return nothing;
    }
    // A function in another schema is a user's own.
    if let [.., schema, dot] = before
        && dot.text == "."
        && schema.name().is_none_or(|schema| schema != "pg_catalog")
    {
        return nothing;
    }
    match name.name().as_deref() {
        Some("set_config") => match is_local(arguments) {
            Some(true) => effect(Lasts::Transaction, None),
            Some(false) => effect(Session, Some(Needs::Setting)),
            None => effect(Session, None),
        },
        Some(name) => {
            let lock = name.strip_prefix("pg_advisory_").or_else(|| name.strip_prefix("pg_try_advisory_"));
            match lock {
                Some(lock) if !lock.starts_with("xact_") => effect(Session, Some(Needs::Lock)),
                _ => nothing,
            }
        }
        None => nothing,
    }
}

/// Whether a call of `set_config` is for the transaction only. `None` if the argument is not a constant.
fn is_local(call: &[Token<'_>]) -> Option<bool> {
    let mut depth = 0;
    let arguments = call.split(|token| {
        depth += match token.text {
            "(" | "[" => 1,
            ")" | "]" => -1,
            _ => 0,
        };
        // The argument list ends at its closing parenthesis.
        depth < 0 || (depth == 0 && token.text == ",")
    });
    let arguments: Vec<_> = arguments.take(3).collect();
    // The third argument, or the named argument `is_local => …`.
    let named = arguments.iter().find(|argument| argument.first().is_some_and(|name| name.is("is_local")));
    let value = match named {
        Some(argument) => argument.get(3..)?,
        None => arguments.get(2)?,
    };
    match value {
        [word] if word.is("true") => Some(true),
        [word] if word.is("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_change_the_session_are_found_despite_comments_and_case() {
        for sql in [
            "BEGIN",
            "  begin isolation level serializable",
            "-- a comment\n/* another /* nested */ one */ Start Transaction",
            "-- a comment\rbegin",
            "commit;",
            "ROLLBACK TO SAVEPOINT a",
            "set search_path = x",
            "SET SESSION time zone 'UTC'",
            "set local.x = 'a'",
            "set local to 'a'",
            "set transaction.x = 'a'",
            "set constraints.x = 'a'",
            "set /* local */ x.y = 'a'",
            "set \"local\" = 'a'",
            "reset all",
            "listen x",
            "UNLISTEN *",
            "prepare p as select 1",
            "prepare transaction 'a'",
            "execute p",
            "declare c cursor with hold for select 1",
            "create temp table t (n int)",
            "create local temporary table t (n int)",
            "create or replace temp view v as select 1",
            "create temp recursive view v (n) as select 1",
            "create temporary sequence s",
            "create temp table t (n int) on commit delete rows",
            "create temp table t (n) as select ' on commit drop'",
            "create table pg_temp.x (n int)",
            "create table \"pg_temp\".x (n int)",
            "create function pg_temp.f() returns int language sql as 'select 1'",
            "create type PG_TEMP.t as (n int)",
            "create function f() returns text begin atomic; select set_config('a.b', 'c', false); end",
            "select 1 as n into temp t",
            "with a as (select 1) select * into local temporary table t from a",
            "select 1 as n into pg_temp.t",
            "; begin",
            "(select 1); begin",
            "load 'x'",
            "discard all",
            "/* select */ begin",
            "do $$ begin perform 1; end $$",
            "call p()",
            "explain analyze create temp table t as select 1",
            "copy t from stdin",
            "select set_config('a.b', 'c', false)",
            "select set_config('a.b', 'c', $1)",
            "SELECT pg_catalog . \"set_config\" ('a.b', 'c', false)",
            "select set_config(is_local => false, setting_name => 'a.b', new_value => 'true')",
            "select set_config('a.b', f(1, true, true), false)",
            "select set_config(a.name, a.setting, false) from a",
            "select set_config('a.b', 'c', $1 and true)",
            "update t set n = 1 where pg_try_advisory_lock(1)",
            "insert into t select n from pg_advisory_lock_shared(1) n",
            "table a; set x.y = 'z'",
            "create table t as select pg_advisory_lock(1)",
            "frobnicate the session",
            "\u{feff}select 1",
        ] {
            assert!(changes_session(sql), "{sql}");
        }
    }

    #[test]
    fn statements_without_a_lasting_effect_do_not_count_as_changes() {
        for sql in [
            "select 1",
            "(select 1) union (select 2)",
            "insert into begin_of_time values (1)",
            "update t set n = 1",
            "SELECT\n1",
            "with",
            "/* begin */ delete from t",
            "-- begin\nselect 1",
            "create table temporary_things (n int)",
            "create table temp (n int)",
            "create temp table t (n int) on commit drop",
            "create table pg_temperature (n int)",
            "insert into temp select * from temp",
            "insert into pg_temp.t values (1)",
            "merge into temp using t on true when matched then delete",
            "select attempt, template, temperature, temp from t",
            "set local statement_timeout = '1s'",
            "set/**/local/**/statement_timeout = '1s'",
            "set local \"statement_timeout\" = '1s'",
            "set local transaction read only",
            "SET TRANSACTION READ ONLY",
            "set constraints all deferred",
            "set constraints \"c\" immediate",
            "declare c cursor for select 1",
            "fetch all from c",
            "with t as (select 1) select * from t",
            "select set_config('a.b', 'c', true)",
            "select SET_CONFIG('a.b', f('c', false), TRUE), 1",
            "select set_config(is_local => true, setting_name => 'a.b', new_value => 'false')",
            "select mine.set_config('a.b', 'c', false)",
            "select set_config from t",
            "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
            "select * from pg_stat_activity where query like '%set_config(%' or query like '%pg_advisory_lock(%'",
            "select 1 -- into temp t",
            "alter table t add column n int",
            "notify a, 'b'",
            "show all",
            "",
            ";;",
            "/* not closed",
            "--",
        ] {
            assert!(!changes_session(sql), "{sql}");
        }
    }

    #[test]
    fn statements_that_need_a_session_of_their_own_are_found() {
        for (sql, needs) in [
            ("listen a", Needs::Listen),
            ("/* a */ UNLISTEN *", Needs::Listen),
            ("select pg_advisory_lock(1)", Needs::Lock),
            ("select n, PG_TRY_ADVISORY_LOCK_SHARED (1, 2) from t", Needs::Lock),
            ("select pg_advisory_unlock_all()", Needs::Lock),
            ("with a as (select pg_advisory_unlock($1)) select * from a", Needs::Lock),
            ("set search_path = x", Needs::Setting),
            ("set local.x = 'a'", Needs::Setting),
            ("select set_config('a.b', $1, false)", Needs::Setting),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Needs::Setting),
            ("reset all", Needs::Setting),
            ("; discard all", Needs::Setting),
            ("load 'x'", Needs::Setting),
            ("prepare p as select 1", Needs::Prepared),
            ("deallocate p", Needs::Prepared),
            ("create temp table t (n int)", Needs::Temporary),
            ("create temp table t (n int) on commit delete rows", Needs::Temporary),
            ("create table pg_temp.t (n int)", Needs::Temporary),
            ("select 1 as n into temp t", Needs::Temporary),
            ("declare c cursor with hold for select 1", Needs::Cursor),
        ] {
            assert_eq!(needs_session(sql, false), Some(needs), "{sql}");
            let after_others = format!("select 1; {sql}");
            assert_eq!(needs_session(&after_others, true), Some(needs), "{after_others}");
        }
    }

    #[test]
    fn statements_whose_effect_ends_with_the_transaction_need_no_session() {
        for sql in [
            "select 1",
            "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
            "select * from pg_stat_activity where query like '%pg_advisory_lock(%'",
            "select my_advisory_lock(1)",
            "select 'ä', ü.pg_advisory from ü",
            "set local statement_timeout = '1s'",
            "set transaction read only",
            "select set_config('a.b', $1, true), set_config('a.c', $2, $3)",
            "begin",
            "prepare transaction 'a'",
            "commit prepared 'a'",
            "create table t (n int)",
            "create temp table t (n int) on commit drop;",
            "declare c cursor for select 1",
            "explain analyze select 1",
            "notify a, 'b'",
            "",
        ] {
            assert_eq!(needs_session(sql, true), None, "{sql}");
        }
    }
}
