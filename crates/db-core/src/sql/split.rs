//! The statements of a text.
//!
//! Semicolons end them, but not those within parentheses (`CREATE RULE … DO (…; …)`), nor those within `BEGIN ATOMIC … END` of a function
//! or procedure. These are the rules of `src/fe_utils/psqlscan.l`, on the tokens of PostgreSQL's scanner.

use std::fmt;

use serde::Serialize;

use super::effects::{Effect, effect_of};
use super::lexer::{Kind, Token, tokens};

/// A statement of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'s> {
    /// From its first word on, without its semicolon. Comments within it, and between its end and the semicolon, belong to it.
    pub text: &'s str,
    /// The bytes of the text before it.
    pub start: usize,
}

impl<'s> Statement<'s> {
    /// Its tokens without white space and comments.
    pub fn tokens(&self) -> impl Iterator<Item = Token<'s>> + use<'s> {
        tokens(self.text).filter(|token| token.kind != Kind::Blank)
    }

    /// What it does to its session.
    #[must_use]
    pub fn effect(&self) -> Effect {
        effect_of(&self.tokens().collect::<Vec<_>>())
    }
}

/// A place in a text, as editors count: from 1 on, a column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Position {
    /// The place of the byte with this number, from 0 on. Lines end with `\n`, `\r\n` or `\r`.
    #[must_use]
    pub fn of(text: &str, byte: usize) -> Self {
        let before = &text[..text.floor_char_boundary(byte)];
        let breaks = before.matches('\n').count()
            + before.match_indices('\r').filter(|(at, _)| !text[at + 1..].starts_with('\n')).count();
        let line = before.rfind(['\n', '\r']).map_or(before, |at| &before[at + 1..]);
        let counted = |before: usize| u32::try_from(before + 1).unwrap_or(u32::MAX);
        Self { line: counted(breaks), column: counted(line.chars().count()) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A text cannot be sent to a server, or not statement by statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {reason}")]
pub struct SplitError {
    /// Where it begins.
    pub position: Position,
    /// What it is.
    pub reason: Unsplittable,
}

/// What stands in a text that the server would not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsplittable {
    /// A byte of value 0, which ends a text in PostgreSQL's protocol.
    #[error("a NUL byte, which would end the text for the server: remove it")]
    Nul,
    /// A string, a quoted name or a comment that does not end.
    #[error("a string, a quoted name or a comment begins here and does not end")]
    Unterminated,
    /// A command of psql, such as `\set` or `\restrict`.
    #[error(
        "a backslash outside of a string begins a command of psql, which the server does not know: remove the line"
    )]
    PsqlCommand,
    /// `COPY … FROM STDIN` or `COPY … TO STDOUT`.
    #[error("COPY with data in the file or to the client: write INSERT instead, or load the data by psql")]
    CopyData,
}

/// Splits a text into its statements. Empty ones, of comments and white space alone, are left out.
///
/// Takes `standard_conforming_strings` to be on, its default since PostgreSQL 9.1.
///
/// # Errors
///
/// The first of what is [`Unsplittable`].
pub fn split(sql: &str) -> Result<Vec<Statement<'_>>, SplitError> {
    let refused = |at, reason| SplitError { position: Position::of(sql, at), reason };
    let nul = sql.find('\0');
    let mut statements = Vec::new();
    let mut current = Current::default();
    let mut at = 0;
    for token in tokens(sql) {
        let begins = at;
        at += token.text.len();
        if nul.is_some_and(|nul| nul < at) {
            return Err(refused(nul.unwrap_or(begins), Unsplittable::Nul));
        }
        if !token.is_closed {
            return Err(refused(begins, Unsplittable::Unterminated));
        }
        if token.text == "\\" {
            return Err(refused(begins, Unsplittable::PsqlCommand));
        }
        if token.text == ";" && current.is_at_top() {
            statements.extend(current.end(sql).map_err(|at| refused(at, Unsplittable::CopyData))?);
            current = Current::default();
        } else {
            current.push(token, begins);
        }
    }
    statements.extend(current.end(sql).map_err(|at| refused(at, Unsplittable::CopyData))?);
    Ok(statements)
}

/// The statement that is read.
#[derive(Debug, Default)]
struct Current<'s> {
    /// Its first tokens, as far as a rule needs them.
    head: Vec<Token<'s>>,
    before: Option<Token<'s>>,
    /// Where its first token begins.
    start: usize,
    /// Where its last token or comment ends.
    end: usize,
    /// The parentheses that are open.
    parentheses: usize,
    /// `BEGIN ATOMIC` and the `CASE`s in it that are open.
    blocks: usize,
    /// Whether it moves rows between the server and the client.
    has_copy_data: bool,
}

/// `create or replace function`.
const HEAD: usize = 4;

impl<'s> Current<'s> {
    fn is_at_top(&self) -> bool {
        self.parentheses == 0 && self.blocks == 0
    }

    fn push(&mut self, token: Token<'s>, at: usize) {
        if token.kind == Kind::Blank {
            let is_comment = !token.text.starts_with(char::is_whitespace);
            if is_comment && self.before.is_some() {
                self.end = at + token.text.len();
            }
            return;
        }
        if self.before.is_none() {
            self.start = at;
        }
        self.end = at + token.text.len();
        if self.head.len() < HEAD {
            self.head.push(token);
        }
        match token.text {
            "(" => self.parentheses += 1,
            ")" => self.parentheses = self.parentheses.saturating_sub(1),
            _ if self.parentheses == 0 => self.count_words(token),
            _ => {}
        }
        self.before = Some(token);
    }

    fn count_words(&mut self, token: Token<'s>) {
        let follows = |keyword| self.before.is_some_and(|before| before.is(keyword));
        if token.is("atomic") && follows("begin") && self.blocks == 0 && self.is_routine() {
            self.blocks = 1;
        } else if self.blocks > 0 {
            // As a column's name, after `as` or a dot, they are no keywords.
            let is_name = follows("as") || self.before.is_some_and(|before| before.text == ".");
            if token.is("case") && !is_name {
                self.blocks += 1;
            } else if token.is("end") && !is_name {
                self.blocks -= 1;
            }
        }
        let is_copy = self.head.first().is_some_and(|first| first.is("copy"));
        if is_copy && token.is_any(&["stdin", "stdout"]) && (follows("from") || follows("to")) {
            self.has_copy_data = true;
        }
    }

    fn is_routine(&self) -> bool {
        let rest = match &*self.head {
            [create, or, replace, rest @ ..]
                if create.is("create") && or.is("or") && replace.is("replace") =>
            {
                rest
            }
            [create, rest @ ..] if create.is("create") => rest,
            _ => return false,
        };
        rest.first().is_some_and(|kind| kind.is_any(&["function", "procedure"]))
    }

    /// The statement, if there is one; where it begins if it has the data of a `COPY`.
    fn end(&self, sql: &'s str) -> Result<Option<Statement<'s>>, usize> {
        if self.has_copy_data {
            return Err(self.start);
        }
        let statement = || Statement { text: &sql[self.start..self.end], start: self.start };
        Ok(self.before.is_some().then(statement))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::corpus::{data, fnv1a, regression_tests};
    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        split(sql).unwrap_or_else(|error| panic!("{sql}: {error}")).iter().map(|it| it.text).collect()
    }

    #[test]
    fn semicolons_in_strings_names_comments_and_parentheses_end_no_statement() {
        for (sql, expected) in [
            ("", vec![]),
            (" \n-- nothing\n/* here */ ;;", vec![]),
            ("select 1; select 2", vec!["select 1", "select 2"]),
            (
                "select 'a;''b', E'\\';', $$;$$, $a$ $$;$$ $a$, \";\" ; select 2",
                vec!["select 'a;''b', E'\\';', $$;$$, $a$ $$;$$ $a$, \";\"", "select 2"],
            ),
            ("select E'a'\n'\\';' ; select 'b\\', ';'", vec!["select E'a'\n'\\';'", "select 'b\\', ';'"]),
            (
                "-- one; /*\nselect 1 /* a /* b; */ c; */ -- d;\n; -- e;\r select 2",
                vec!["select 1 /* a /* b; */ c; */ -- d;", "select 2"],
            ),
            (
                "create rule r as on insert to a do also (insert into b values (1); insert into c values (2););select 1",
                vec![
                    "create rule r as on insert to a do also (insert into b values (1); insert into c values (2);)",
                    "select 1",
                ],
            ),
            (
                "create table a$b$c (x int); select 1 <-- ;\n 2",
                vec!["create table a$b$c (x int)", "select 1 <-- ;\n 2"],
            ),
            ("select 1);select 2", vec!["select 1)", "select 2"]),
        ] {
            assert_eq!(texts(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a_body_of_statements_belongs_to_its_function() {
        for body in [
            "create function f() returns int begin atomic select 1; select 2; end",
            "create or replace procedure p() begin /* now */ ATOMIC select case when a then case b when 1 then 2 end else 3 end; end",
            "create function f() returns int language sql begin atomic select 1 as end; select t.case from t; end",
            "create function begin() returns int begin atomic select (case when true then 1 end); end",
        ] {
            assert_eq!(texts(&format!("{body}; select 1")), [body, "select 1"]);
        }
        for sql in [
            "begin; select 1; end",
            "create table \"begin\" (\"end\" int, atomic int); begin; end",
            "create function atomic() returns int return 1; select 2; end",
            "create view v as select a as begin, atomic from t; select 2; end",
            "select begin atomic from t; select 2; select 3",
            "create function begin() returns int return 1; select case when true then 2 end; select 3",
        ] {
            assert_eq!(texts(sql).len(), 3, "{sql}");
        }
    }

    #[test]
    fn what_the_server_would_not_take_is_refused_where_it_begins() {
        use Unsplittable::{CopyData, Nul, PsqlCommand, Unterminated};
        for (sql, line, column, reason) in [
            ("select 1;\0 select 2;", 1, 10, Nul),
            ("select '\n\0';", 2, 1, Nul),
            ("select 1;\nselect 'é', 'never", 2, 13, Unterminated),
            ("select E'\\'", 1, 8, Unterminated),
            ("select E'a'\n'b", 1, 8, Unterminated),
            ("select 1;\r\nselect \"a", 2, 8, Unterminated),
            ("select 1;\rselect /* /* */", 2, 8, Unterminated),
            ("select $$ $a$ $a$", 1, 8, Unterminated),
            ("select U&'a", 1, 8, Unterminated),
            ("select X'a", 1, 8, Unterminated),
            ("\\restrict abc\nselect 1", 1, 1, PsqlCommand),
            ("select 1 \\gset\nselect 1", 1, 10, PsqlCommand),
            ("select 1;\n -- c\n COPY t (a, b) FROM /* here */ STDIN with csv;\n1,$$\n\\.\n", 3, 2, CopyData),
            ("copy (select 1) to stdout", 1, 1, CopyData),
        ] {
            let refused = split(sql).expect_err(sql);
            assert_eq!(refused, SplitError { position: Position { line, column }, reason }, "{sql:?}");
        }
        for sql in [
            "copy t from '/stdin'",
            "copy t to program 'x'",
            "select 'copy t from stdin; \\x'",
            "copy \"from\" (stdin) from 'x'",
            "copy (select n from stdin) to 'x'",
        ] {
            assert_eq!(texts(sql), [sql]);
        }
    }

    #[test]
    fn postgresqls_regression_tests_have_the_statements_that_its_parser_finds() {
        let folder = regression_tests();
        let (mut files, mut statements, mut different) = (0, 0, Vec::new());
        for row in data("statements.tsv").lines() {
            let [file, count, hash] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let sql = std::fs::read_to_string(folder.join(file)).expect(file);

            let found = split(&sql);

            let joined: String = found.iter().flatten().flat_map(|it| [it.text, "\u{1e}"]).collect();
            let found = found.map_or(0, |found| found.len());
            if found.to_string() != count || format!("{:016x}", fnv1a(&joined)) != hash {
                different.push(format!("{file}: {found} of {count}"));
            }
            files += 1;
            statements += found;
        }
        assert!(files >= 280 && statements > 13_000, "{files} files, {statements} statements");
        assert!(different.is_empty(), "split differently: {different:#?}");
    }

    /// Words and signs that change how what follows is read.
    fn difficult() -> impl Strategy<Value = String> {
        let words = "'|''|\"|$$|$a$|--|/*|*/|\n|\r|;|;|(|)|create |or |replace |function |begin |atomic |case |end |as |.|E'|U&'|U&\"|N'|\
                     \\|copy t from stdin|a|1|1e| |\u{feff}|é|\0|$1|<|-|/";
        let words: Vec<&str> = words.split('|').collect();
        prop::collection::vec(prop::sample::select(words), 0..24).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn statements_are_parts_of_their_text_and_split_to_themselves(text in difficult()) {
            prop_assert_eq!(tokens(&text).map(|token| token.text).collect::<String>(), &*text);
            let mut end = 0;
            for statement in split(&text).unwrap_or_default() {
                let gap = &text[end..statement.start];
                prop_assert!(tokens(gap).all(|it| it.kind == Kind::Blank || it.text == ";"), "{:?}", gap);
                end = statement.start + statement.text.len();
                prop_assert_eq!(&text[statement.start..end], statement.text);
                let again = split(statement.text).expect("it was split before");
                prop_assert_eq!(again.iter().map(|it| it.text).collect::<Vec<_>>(), [statement.text]);
            }
        }
    }
}
