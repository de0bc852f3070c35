//! The statements of a file, and the rules for those that run outside of a transaction. The rules see only the text.

use std::fmt;

use db_core::sql::{self, Effect, Lasts, Needs, Position, Statement, Token};
use sha2::{Digest, Sha256};
use sqlx::migrate::Migration;

use crate::data_step::raise;
use crate::directive::{directives, problem};

/// A statement of a file outside of a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Step<'m> {
    pub(crate) statement: Statement<'m>,
    pub(crate) place: Place,
    /// What is done if it was cut off.
    pub(crate) cut_off: CutOff,
    pub(crate) after_loss: AfterLoss,
}

/// Where a statement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a transaction with its record. The server may refuse it there: then it runs outside.
    Transaction,
    /// Where the server refuses it in a transaction.
    Outside,
}

/// What is known of a statement that began outside of a transaction, and whose end is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CutOff {
    /// `CREATE INDEX CONCURRENTLY`: the catalog tells. Names are as in SQL; an index may have none.
    CreateIndex { name: Option<String>, table: String },
    /// `DROP INDEX CONCURRENTLY`: the catalog tells.
    DropIndex { name: String },
    /// `REINDEX`: it may run again, after the indexes that it left have been dropped. None: of more than a table or an index.
    Reindex { of: Option<Reindexed> },
    /// `ALTER TABLE … DETACH PARTITION … CONCURRENTLY`: the catalog tells.
    Detach { table: String, partition: String },
    /// It may run again.
    Repeat,
    /// A person has to decide. Nothing is left by one that the server ended with an error.
    Decide,
    /// As [`Decide`](Self::Decide), but it may have committed a part before an error.
    DecideAlways,
}

/// What a `REINDEX` builds anew, as its name is in SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reindexed {
    Table(String),
    Index(String),
}

/// What a statement that is done has to do with a session that takes the place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterLoss {
    /// Nothing.
    Stays,
    /// The new session needs it, too.
    Repeat,
    /// What it has made is lost.
    Lost,
}

/// A place in a file that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The migration. Of a repeatable file, the newest one.
    pub version: i64,
    /// The file's name, without zeros before the version. Of a repeatable file, with its folder.
    pub file: String,
    /// Where it is.
    pub position: Position,
    /// What it is, and what to do.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, position, reason, .. } = self;
        write!(f, "{file}, {position}: {reason}")
    }
}

/// What is wrong with the statements of a file.
pub(crate) fn finding(migration: &Migration) -> Option<Finding> {
    let Migration { version, description, migration_type, .. } = migration;
    let file = || format!("{version}_{}{}", description.replace(' ', "_"), migration_type.suffix());
    first_problem(migration).map(|(position, reason)| Finding {
        version: *version,
        file: file(),
        position,
        reason,
    })
}

/// What is wrong with a repeatable file.
pub(crate) fn finding_in_repeatable(file: &Migration) -> Option<Finding> {
    let outside = || {
        let reason = "a repeatable file runs in a transaction, with its record: remove `-- no-transaction`";
        file.no_tx.then(|| (Position::of("", 0), reason.to_owned()))
    };
    let step = || {
        let (start, _) = directives(file.sql.as_str()).find(|(_, text)| text.starts_with("step"))?;
        let reason = "a repeatable file cannot be a step of the program";
        Some((Position::of(file.sql.as_str(), start), reason.to_owned()))
    };
    first_problem(file).or_else(outside).or_else(step).map(|(position, reason)| Finding {
        version: file.version,
        file: format!("repeatable/{}.sql", file.description),
        position,
        reason,
    })
}

fn first_problem(migration: &Migration) -> Option<(Position, String)> {
    let text = migration.sql.as_str();
    let statements = match sql::split(text) {
        Ok(statements) => statements,
        Err(error) => return Some((error.position, error.reason.to_string())),
    };
    let bad = directives(text).find_map(|(start, directive)| Some((start, problem(directive)?)));
    let misplaced = || {
        let of = |statement: &Statement<'_>| Some((statement.start, misplaced(statement)?));
        statements.iter().filter(|_| migration.no_tx).find_map(of)
    };
    let step = || directives(text).find(|(_, text)| text.starts_with("step"));
    let passes = || step().filter(|_| raise(&statements).is_none()).map(|(start, _)| (start, PASSES));
    bad.or_else(passes)
        .or_else(misplaced)
        .map(|(start, reason)| (Position::of(text, start), reason.to_owned()))
}

const PASSES: &str = "the rest of a file with `-- db-migrate: step` is one `do` block that raises an exception, so that other migrators stop there \
                      (`db-migrate new --step` writes it)";

/// The statements of a file in which there is [no finding](finding).
pub(crate) fn steps<'m>(migration: &'m Migration) -> Vec<Step<'m>> {
    let statements = sql::split(migration.sql.as_str()).unwrap_or_default();
    let step = |statement: Statement<'m>| {
        let tokens: Vec<_> = statement.tokens().collect();
        let (place, cut_off) = rule(&tokens);
        Step { place, cut_off, after_loss: after_loss(&tokens, statement.effect()), statement }
    };
    statements.into_iter().map(step).collect()
}

/// The digest of the first statements, as a file has to have them still when it goes on.
pub(crate) fn digest(done: &[Step<'_>]) -> Vec<u8> {
    let mut digest = Sha256::new();
    for step in done {
        digest.update(step.statement.text);
        digest.update([0]);
    }
    digest.finalize().to_vec()
}

/// Why a statement may not stand in a file outside of a transaction.
fn misplaced(statement: &Statement<'_>) -> Option<&'static str> {
    let tokens: Vec<_> = statement.tokens().collect();
    let [first, rest @ ..] = &*tokens else { return None };
    let next = |words: &[&str]| rest.first().is_some_and(|token| token.is_any(words));
    if first.is_any(&["begin", "start", "end", "abort", "savepoint", "release"])
        || (first.is_any(&["commit", "rollback"]) && !next(&["prepared"]))
        || (first.is("prepare") && next(&["transaction"]))
    {
        return Some(
            "a file outside of a transaction controls none: each statement is a transaction of its own. Remove it, or move the \
             transaction to a file without `-- no-transaction`",
        );
    }
    if first.is("discard") && next(&["all"]) {
        return Some("it would release the migration lock: name what is to be discarded");
    }
    if first.is_any(&["set", "lock", "declare"]) && statement.effect().lasts == Lasts::Transaction {
        return Some(
            "its effect ends with its transaction, and each statement is a transaction of its own: set it for the session, or move \
             it to a file without `-- no-transaction`",
        );
    }
    if first.is("set") && (next(&["session"]) && rest.get(1).is_some_and(|token| token.is("authorization"))) {
        return Some("the records are written by the role that connects: write `set role`");
    }
    let has_text = |part: &str| rest.iter().any(|token| token.text.to_ascii_lowercase().contains(part));
    let is_on = |token: &Token<'_>| {
        let value = token.text.trim_matches(['\'', '"']).to_ascii_lowercase();
        ["on", "true", "yes", "1", "default"].contains(&&*value)
    };
    if first.is_any(&["set", "select"]) && has_text("standard_conforming_strings") && !rest.iter().any(is_on)
    {
        return Some("the file is split with standard_conforming_strings on: write such strings as E'…'");
    }
    if has_text("pg_advisory_unlock_all") && !first.is("create") {
        return Some("it would release the migration lock: release locks one by one");
    }
    None
}

/// Where a statement runs, and what is done when it was cut off.
///
/// The statements that PostgreSQL refuses in a transaction are those of its manual, part VI "SQL Commands". Some of them, such as the
/// `REINDEX` of a partitioned table, cannot be told by their text: the server refuses them.
fn rule(tokens: &[Token<'_>]) -> (Place, CutOff) {
    use CutOff::{CreateIndex, Decide, DecideAlways, Detach, DropIndex, Reindex, Repeat};
    use Place::{Outside, Transaction};
    let Some(first) = tokens.first() else { return (Transaction, Decide) };
    let has = |word| tokens.iter().any(|token| token.is(word));
    let second = |words: &[&str]| tokens.get(1).is_some_and(|token| token.is_any(words));
    let objects = ["database", "tablespace", "subscription"];
    let mut words = Words(tokens);
    if words.skip(&["create"]) {
        words.skip(&["unique"]);
        if words.skip(&["index", "concurrently"]) {
            words.skip(&["if", "not", "exists"]);
            let name = if words.skip(&["on"]) { None } else { words.name() };
            words.skip(&["on"]);
            words.skip(&["only"]);
            let index = words.name().map(|table| CreateIndex { name, table });
            // A failure leaves an invalid index.
            return (Outside, index.unwrap_or(DecideAlways));
        }
        return (if second(&objects) { Outside } else { Transaction }, Decide);
    }
    if words.skip(&["drop"]) {
        if words.skip(&["index", "concurrently"]) {
            words.skip(&["if", "exists"]);
            return (Outside, words.name().map_or(Decide, |name| DropIndex { name }));
        }
        return (if second(&objects) { Outside } else { Transaction }, Decide);
    }
    if words.skip(&["alter", "table"]) {
        words.skip(&["if", "exists"]);
        words.skip(&["only"]);
        if let Some(table) = words.name()
            && words.skip(&["detach", "partition"])
            && let Some(partition) = words.name()
            && words.skip(&["concurrently"])
        {
            return (Outside, Detach { table, partition });
        }
        return (Transaction, Decide);
    }
    match () {
        () if first.is("vacuum") => (Outside, Repeat),
        () if first.is("alter") && second(&["system"]) => (Outside, Repeat),
        () if first.is("reindex") => {
            let is_outside = ["concurrently", "schema", "database", "system"].into_iter().any(has);
            (if is_outside { Outside } else { Transaction }, Reindex { of: reindexed(tokens) })
        }
        () if first.is_any(&["commit", "rollback"]) && second(&["prepared"]) => (Outside, Decide),
        () if first.is("cluster") => (Transaction, Repeat),
        // A procedure may commit.
        () if first.is_any(&["call", "do"]) => (Transaction, DecideAlways),
        () => (Transaction, Decide),
    }
}

fn reindexed(tokens: &[Token<'_>]) -> Option<Reindexed> {
    let at = tokens.iter().position(|token| token.is_any(&["table", "index"]))?;
    let is_table = tokens[at].is("table");
    let mut words = Words(&tokens[at + 1..]);
    words.skip(&["concurrently"]);
    let name = words.name()?;
    Some(if is_table { Reindexed::Table(name) } else { Reindexed::Index(name) })
}

fn after_loss(tokens: &[Token<'_>], effect: Effect) -> AfterLoss {
    let Some(first) = tokens.first() else { return AfterLoss::Stays };
    let sets = ["set", "reset", "load", "prepare", "deallocate", "listen", "unlisten", "select"];
    match effect.needs {
        Some(Needs::Temporary | Needs::Cursor) => AfterLoss::Lost,
        Some(_) if first.is_any(&sets) => AfterLoss::Repeat,
        _ => AfterLoss::Stays,
    }
}

/// The rest of a statement.
struct Words<'t, 's>(&'t [Token<'s>]);

impl Words<'_, '_> {
    /// Goes on after these keywords, if all of them come next.
    fn skip(&mut self, keywords: &[&str]) -> bool {
        let comes = self.0.len() >= keywords.len()
            && self.0.iter().zip(keywords).all(|(token, keyword)| token.is(keyword));
        if comes {
            self.0 = &self.0[keywords.len()..];
        }
        comes
    }

    /// Goes on after a name, as it is written. None for one with Unicode escapes, which only the parser reads.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            let [token, rest @ ..] = self.0 else { return None };
            token.name()?;
            if token.text.starts_with(['u', 'U']) && token.text.contains('&') {
                return None;
            }
            name.push_str(token.text);
            self.0 = rest;
            match rest {
                [dot, rest @ ..] if dot.text == "." => {
                    name.push('.');
                    self.0 = rest;
                }
                _ => return Some(name),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::migrate::MigrationType;
    use sqlx::{AssertSqlSafe, SqlSafeStr};

    use super::*;

    fn file(sql: &str) -> Migration {
        let no_tx = sql.starts_with("-- no-transaction");
        let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
        Migration::new(3, "add an index".into(), MigrationType::ReversibleUp, sql, no_tx)
    }

    fn found(sql: &str) -> Option<String> {
        finding(&file(sql)).map(|finding| finding.to_string())
    }

    fn one(sql: &str) -> (Place, CutOff, AfterLoss) {
        let file = file(sql);
        let mut steps = steps(&file);
        assert_eq!(steps.len(), 1, "{sql}");
        let Step { place, cut_off, after_loss, .. } = steps.remove(0);
        (place, cut_off, after_loss)
    }

    #[test]
    fn transactions_and_what_ends_with_them_are_refused_outside_of_a_transaction() {
        for sql in [
            "begin",
            "START TRANSACTION",
            "commit",
            "end",
            "rollback",
            "abort",
            "savepoint a",
            "release a",
            "prepare transaction 'a'",
            "discard all",
            "set local lock_timeout = 1",
            "set transaction read only",
            "set constraints all deferred",
            "lock table t",
            "declare c cursor for select 1",
            "set standard_conforming_strings = off",
            "set session standard_conforming_strings to 'off'",
            "set standard_conforming_strings to 0",
            "select set_config('standard_conforming_strings', 'off', false)",
            "set session authorization x",
            "select pg_advisory_unlock_all()",
        ] {
            let found = found(&format!("-- no-transaction\nselect 1;\n  {sql};")).expect(sql);
            assert!(found.starts_with("3_add_an_index.up.sql, line 3, column 3: "), "{found}");
            assert_eq!(self::found(sql), None, "in a transaction: {sql}");
        }
        for sql in [
            "commit prepared 'a'",
            "rollback prepared 'a'",
            "prepare p as select 1",
            "discard temp",
            "set lock_timeout = 1",
            "set standard_conforming_strings = on",
            "select set_config('standard_conforming_strings', 'on', false)",
            "set session characteristics as transaction read only",
            "declare c cursor with hold for select 1",
            "select 'begin; commit'",
        ] {
            assert_eq!(found(&format!("-- no-transaction\n{sql}")), None);
        }
    }

    #[test]
    fn what_the_server_would_not_take_is_refused_in_each_file() {
        for sql in ["select 1;\0", "copy t from stdin;\n1\n", "\\set x", "select '"] {
            assert!(found(sql).is_some(), "{sql}");
        }
    }

    #[test]
    fn the_place_of_a_statement_is_told_by_its_words() {
        use CutOff::{CreateIndex, Decide, DecideAlways, Detach, DropIndex, Reindex, Repeat};
        use Place::{Outside, Transaction};
        let index = |name: Option<&str>, table: &str| CreateIndex {
            name: name.map(str::to_owned),
            table: table.to_owned(),
        };
        let detach = |table: &str, partition: &str| Detach {
            table: table.to_owned(),
            partition: partition.to_owned(),
        };
        let drop = |name: &str| DropIndex { name: name.to_owned() };
        for (sql, place, cut_off) in [
            ("create index concurrently a on t (n)", Outside, index(Some("a"), "t")),
            (
                "CREATE /* one */ UNIQUE INDEX CONCURRENTLY IF NOT EXISTS \"A b\" ON ONLY s . \"T\" USING btree (n)",
                Outside,
                index(Some("\"A b\""), "s.\"T\""),
            ),
            ("create index concurrently on t (n)", Outside, index(None, "t")),
            ("create index concurrently a on u&\"t\" (n)", Outside, DecideAlways),
            ("create index a on t (n)", Transaction, Decide),
            ("create index concurrently_a on t (n)", Transaction, Decide),
            ("drop index concurrently if exists s.a cascade", Outside, drop("s.a")),
            ("drop index a", Transaction, Decide),
            ("reindex index concurrently a", Outside, Reindex { of: Some(Reindexed::Index("a".into())) }),
            (
                "reindex (concurrently, verbose) table s.t",
                Outside,
                Reindex { of: Some(Reindexed::Table("s.t".into())) },
            ),
            ("reindex schema s", Outside, Reindex { of: None }),
            ("reindex table t", Transaction, Reindex { of: Some(Reindexed::Table("t".into())) }),
            ("alter table if exists only s.t detach partition p concurrently", Outside, detach("s.t", "p")),
            ("alter table t detach partition p", Transaction, Decide),
            ("alter table t detach partition p finalize", Transaction, Decide),
            ("alter system set work_mem = '4MB'", Outside, Repeat),
            ("vacuum full t", Outside, Repeat),
            ("cluster t using a", Transaction, Repeat),
            ("refresh materialized view concurrently v", Transaction, Decide),
            ("create database d", Outside, Decide),
            ("drop database if exists d", Outside, Decide),
            ("create table database (n int)", Transaction, Decide),
            ("commit prepared 'a'", Outside, Decide),
            ("call p()", Transaction, DecideAlways),
            ("do $$ begin commit; end $$", Transaction, DecideAlways),
            ("insert into t values (1)", Transaction, Decide),
        ] {
            let (found, rule, _) = one(sql);
            assert_eq!((found, rule), (place, cut_off), "{sql}");
        }
    }

    #[test]
    fn what_a_new_session_needs_is_told_by_the_words_of_a_statement() {
        for (sql, expected) in [
            ("set search_path = a", AfterLoss::Repeat),
            ("select set_config('search_path', '', false)", AfterLoss::Repeat),
            ("select pg_advisory_lock(1)", AfterLoss::Repeat),
            ("prepare p as select 1", AfterLoss::Repeat),
            ("create temp table t (n int)", AfterLoss::Lost),
            ("select 1 into temp t", AfterLoss::Lost),
            ("declare c cursor with hold for select 1", AfterLoss::Lost),
            ("insert into t select pg_advisory_lock(1)", AfterLoss::Stays),
            (
                "create function f() returns text begin atomic select set_config('a.b', 'c', false); end",
                AfterLoss::Stays,
            ),
            ("create table t (n int)", AfterLoss::Stays),
        ] {
            assert_eq!(one(sql).2, expected, "{sql}");
        }
    }
}
