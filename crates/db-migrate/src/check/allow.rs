//! The comments that allow what a rule would find.

use std::collections::BTreeSet;
use std::ops::Range;

use db_core::sql::{Kind, Position, split, tokens};

use super::rule::Rule;
use crate::directive::{counts, directive};

/// What the comments of a file allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// In the statement of this number.
    statements: Vec<BTreeSet<Rule>>,
    /// Somewhere in the file, which is enough for a rule about the whole of it.
    anywhere: BTreeSet<Rule>,
    /// In the whole file.
    file: BTreeSet<Rule>,
    /// Comments that cannot be understood, and why.
    pub(super) bad: Vec<(Position, String)>,
}

/// A comment that allows rules.
#[derive(Debug, PartialEq, Eq)]
enum Comment {
    Statement(Vec<Rule>),
    File(Vec<Rule>),
    Bad(String),
}

impl Allowed {
    pub(super) fn of(sql: &str) -> Self {
        let statements: Vec<Range<usize>> =
            split(sql).unwrap_or_default().iter().map(|it| it.start..it.start + it.text.len()).collect();
        let mut all = Self { statements: vec![BTreeSet::new(); statements.len()], ..Self::default() };
        let mut at = 0;
        for token in tokens(sql) {
            let begins = at;
            at += token.text.len();
            if token.kind != Kind::Blank {
                continue;
            }
            match read(token.text) {
                None => {}
                Some(Comment::Bad(reason)) => all.bad.push((Position::of(sql, begins), reason)),
                Some(Comment::File(rules)) => all.file.extend(rules),
                Some(Comment::Statement(rules)) => {
                    all.anywhere.extend(&rules);
                    if let Some(nth) = statement(sql, &statements, begins) {
                        all.statements[nth].extend(rules);
                    }
                }
            }
        }
        all
    }

    pub(super) fn in_statement(&self, rule: Rule, statement: usize) -> bool {
        self.file.contains(&rule) || self.statements.get(statement).is_some_and(|rules| rules.contains(&rule))
    }

    pub(super) fn in_file(&self, rule: Rule) -> bool {
        self.file.contains(&rule) || self.anywhere.contains(&rule)
    }
}

/// The statement that a comment is about: the one that it stands in, or behind on its last line, or else the next one.
fn statement(sql: &str, statements: &[Range<usize>], comment: usize) -> Option<usize> {
    let next = statements.iter().position(|it| comment < it.end);
    let before = next.unwrap_or(statements.len()).checked_sub(1);
    let is_behind = |nth: &usize| !sql[statements[*nth].end..comment].contains('\n');
    match next {
        Some(next) if statements[next].start <= comment => Some(next),
        next => before.filter(is_behind).or(next),
    }
}

fn read(comment: &str) -> Option<Comment> {
    let text = comment.strip_prefix("--").or_else(|| comment.strip_prefix("/*")?.strip_suffix("*/"))?.trim();
    if let Some(rest) = text.strip_prefix("squawk-ignore") {
        let (is_file, names) = match rest.strip_prefix("-file") {
            Some(names) => (true, names),
            None => (false, rest),
        };
        if !names.is_empty() && !names.starts_with([' ', '\t', ':']) {
            return None;
        }
        // squawk has rules that are not ours. Without a name, all are meant.
        let names: Vec<&str> = names.split([',', ' ', '\t', ':']).filter(|name| !name.is_empty()).collect();
        let rules = if names.is_empty() {
            Rule::ALL.to_vec()
        } else {
            names.into_iter().filter_map(Rule::of).collect()
        };
        return Some(if is_file { Comment::File(rules) } else { Comment::Statement(rules) });
    }
    let text = directive(comment).filter(|text| !counts(text))?;
    let mut words = text.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("allow"), Some(name), reason) => Some(match (Rule::of(name), reason) {
            (None, _) => Comment::Bad(format!("there is no rule `{name}`")),
            (Some(_), None) => Comment::Bad(format!("no reason is given for allowing `{name}`")),
            (Some(rule), Some(_)) => Comment::Statement(vec![rule]),
        }),
        _ => Some(Comment::Bad("this is not `allow RULE reason`".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Allowed, Rule};

    #[test]
    fn a_comment_allows_a_rule_in_the_statement_that_it_is_about() {
        let allow = "-- db-migrate: allow table-rewrite at night";
        for (sql, statement) in [
            (format!("{allow}\nselect 1; select 2"), Some(0)),
            (format!("select 1;\n{allow}\nselect 2"), Some(1)),
            (format!("select 1; {allow}\nselect 2"), Some(0)),
            (format!("select\n{allow}\n1; select 2"), Some(0)),
            (format!("select 1; select 2;\n\n{allow}"), None),
            // Without a semicolon, the last statement does not end before it.
            (format!("select 1; select 2\n\n{allow}"), Some(1)),
            (format!("select 1; select 2 {allow}"), Some(1)),
            ("select 1; /* db-migrate: allow table-rewrite at night */ select 2".to_owned(), Some(0)),
            ("select 1;\n/* db-migrate: allow table-rewrite at night */ select 2".to_owned(), Some(1)),
            ("-- squawk-ignore prefer-text-field, table-rewrite\nselect 1; select 2".to_owned(), Some(0)),
            ("-- squawk-ignore\nselect 1; select 2".to_owned(), Some(0)),
        ] {
            let allowed = Allowed::of(&sql);
            let found: Vec<usize> = (0..2).filter(|nth| allowed.in_statement(Rule::Rewrites, *nth)).collect();
            assert_eq!(found, Vec::from_iter(statement), "{sql}");
            assert!(allowed.bad.is_empty() && allowed.in_file(Rule::Rewrites), "{sql}: {allowed:?}");
            assert!(
                !allowed.in_statement(Rule::DropsTable, 0) || sql.starts_with("-- squawk-ignore\n"),
                "{sql}"
            );
        }
        let whole = Allowed::of("select 1; select 2;\n-- squawk-ignore-file ban-truncate-cascade");
        assert!((0..2).all(|nth| whole.in_statement(Rule::Truncates, nth)));
    }

    #[test]
    fn a_comment_without_a_rule_or_a_reason_is_found_where_it_is_and_allows_nothing() {
        for (comment, reason) in [
            ("-- db-migrate: allow table-rewrit at night", "there is no rule `table-rewrit`"),
            ("-- db-migrate: allow table-rewrite", "no reason is given for allowing `table-rewrite`"),
            ("-- db-migrate: ignore table-rewrite at night", "this is not `allow RULE reason`"),
        ] {
            let allowed = Allowed::of(&format!("select 1;\n  {comment}\nselect 2"));
            let [(position, said)] = &*allowed.bad else { panic!("{comment}: {allowed:?}") };
            assert_eq!((position.line, position.column, &**said), (2, 3, reason));
            assert!(!allowed.in_file(Rule::Rewrites), "{comment}");
        }
    }

    #[test]
    fn other_comments_and_literals_are_none() {
        for sql in [
            "select '-- db-migrate: allow table-rewrite at night'",
            "-- db-migrate is a command\nselect 1",
            "-- squawk-ignored\nselect 1",
        ] {
            assert_eq!(
                Allowed::of(sql),
                Allowed { statements: vec![[].into()], ..Allowed::default() },
                "{sql}"
            );
        }
    }
}
