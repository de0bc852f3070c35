//! The tokens of a SQL text, as PostgreSQL's scanner finds them.
//!
//! The rules are those of `src/backend/parser/scan.l` with `standard_conforming_strings` on, its default since 9.1.
//! `squawk-lexer` follows them except in four cases, which are corrected here. A test compares the result with the output of
//! PostgreSQL's own scanner for its regression tests.

use squawk_lexer::{BOM, LiteralKind, TokenKind, tokenize};

/// A token of a statement's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'s> {
    /// What it is.
    pub kind: Kind,
    /// As it is written.
    pub text: &'s str,
    /// Whether a literal, a name or a comment has its end.
    pub is_closed: bool,
}

/// The kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// White space, or a comment.
    Blank,
    /// A keyword or an unquoted name.
    Word,
    /// A double-quoted name.
    Name,
    /// A single-quoted or dollar-quoted string, with or without a prefix.
    Literal,
    /// Numbers, parameters, operators, punctuation.
    Other,
}

impl Token<'_> {
    /// Whether the token is this keyword, given in lower case.
    #[must_use]
    pub fn is(self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// Whether the token is one of these keywords.
    #[must_use]
    pub fn is_any(self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(keyword))
    }

    /// The name that the token stands for, if it is a name. `U&` escapes are not resolved.
    #[must_use]
    pub fn name(self) -> Option<String> {
        match self.kind {
            Kind::Word => Some(self.text.to_ascii_lowercase()),
            Kind::Name => {
                let quoted = self.text.trim_start_matches(['u', 'U', '&']);
                Some(quoted.trim_matches('"').to_owned())
            }
            _ => None,
        }
    }
}

/// Splits a text into tokens. Joined, the tokens give the text again.
#[must_use]
pub fn tokens(sql: &str) -> Tokens<'_> {
    Tokens { rest: sql }
}

/// The tokens of a text, in order.
#[derive(Debug, Clone)]
pub struct Tokens<'s> {
    rest: &'s str,
}

impl<'s> Iterator for Tokens<'s> {
    type Item = Token<'s>;

    fn next(&mut self) -> Option<Token<'s>> {
        let (kind, length, is_closed) = first(self.rest)?;
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(Token { kind, text, is_closed })
    }
}

/// The kind of a text's first token, its length, and whether it has its end.
fn first(sql: &str) -> Option<(Kind, usize, bool)> {
    // The server treats a byte order mark as a letter.
    if sql.starts_with(BOM) {
        return Some((Kind::Word, sql.find(|c| !is_in_word(c)).unwrap_or(sql.len()), true));
    }
    let token = tokenize(sql).next()?;
    let length = token.len as usize;
    Some(match token.kind {
        TokenKind::Whitespace | TokenKind::LineComment => (Kind::Blank, length, true),
        TokenKind::BlockComment { terminated } => (Kind::Blank, length, terminated),
        TokenKind::Ident => (Kind::Word, length, true),
        TokenKind::QuotedIdent { terminated, .. } => (Kind::Name, length, terminated),
        // A dollar without a digit is no parameter, and the next characters are a token of their own.
        TokenKind::PositionalParam { .. } if !sql[1..].starts_with(|c: char| c.is_ascii_digit()) => {
            (Kind::Other, 1, true)
        }
        TokenKind::PositionalParam { .. } => {
            (Kind::Other, length - usize::from(takes_the_e(sql, length)), true)
        }
        TokenKind::Literal { kind } => match kind {
            LiteralKind::EscStr { .. } => {
                let (length, is_closed) = escaped(&sql[1..]);
                (Kind::Literal, 1 + length, is_closed)
            }
            LiteralKind::Int { .. } | LiteralKind::Numeric { .. } => {
                (Kind::Other, length - usize::from(takes_the_e(sql, length)), true)
            }
            LiteralKind::Str { terminated }
            | LiteralKind::NationalStr { terminated }
            | LiteralKind::ByteStr { terminated }
            | LiteralKind::BitStr { terminated }
            | LiteralKind::DollarQuotedString { terminated }
            | LiteralKind::UnicodeEscStr { terminated } => (Kind::Literal, length, terminated),
        },
        _ => (Kind::Other, length, true),
    })
}

fn is_in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

/// The length of a string with backslash escapes, from its quote on, and whether it is closed. A string after white space with a line
/// break continues the first, so it has escapes, too (PostgreSQL's manual, chapter 4.1.2.1 "String Constants").
fn escaped(sql: &str) -> (usize, bool) {
    let mut end = 0;
    let mut gap = 0;
    loop {
        let Some(length) = closed(&sql[end + gap..]) else { return (sql.len(), false) };
        end += gap + length;
        match gap_before_more(&sql[end..]) {
            Some(more) => gap = more,
            None => return (end, true),
        }
    }
}

/// The length of one string with escapes, if it is closed. A doubled quote is part of it.
fn closed(sql: &str) -> Option<usize> {
    let mut characters = sql.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '\'' if characters.next_if(|(_, next)| *next == '\'').is_some() => {}
            '\'' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The length of the gap between a string and its continuation, if there is one: white space and line comments, with at least one
/// line break.
fn gap_before_more(sql: &str) -> Option<usize> {
    let mut broken = false;
    let mut gap = 0;
    for token in tokenize(sql) {
        let text = &sql[gap..gap + token.len as usize];
        match token.kind {
            TokenKind::Whitespace => broken |= text.contains(['\n', '\r']),
            TokenKind::LineComment => {}
            _ => return (broken && text.starts_with('\'')).then_some(gap),
        }
        gap += text.len();
    }
    None
}

/// Whether a number or a parameter of this length includes the `e` of an escape string that follows without a space:
/// up to PostgreSQL 14, `1e'\''` is a number and a string.
fn takes_the_e(sql: &str, length: usize) -> bool {
    let (number, rest) = sql.split_at(length);
    rest.starts_with('\'')
        && number.strip_suffix(['e', 'E']).is_some_and(|digits| {
            digits.ends_with(|c: char| c.is_ascii_digit() || c == '.')
                && !digits
                    .contains(|c: char| c == '_' || (c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::corpus::{data, fnv1a, regression_tests};
    use super::*;

    /// Literals, comments, names and words as `tests/data/scanner.py` prints them: a literal with its continuations is one span.
    fn spans(sql: &str) -> Vec<(&'static str, String)> {
        let mut spans: Vec<(&str, String)> = Vec::new();
        let mut gap = Vec::new();
        for token in tokens(sql) {
            if token.kind == Kind::Blank {
                gap.push(token.text);
                continue;
            }
            let blank = std::mem::take(&mut gap);
            let continues = token.text.starts_with('\'')
                && blank.iter().all(|text| !text.starts_with("/*"))
                && blank.iter().any(|text| text.contains(['\n', '\r']));
            match spans.last_mut() {
                Some(("literal", text)) if continues && text.ends_with('\'') => {
                    text.extend(blank);
                    text.push_str(token.text);
                    continue;
                }
                _ => spans.extend(comments(&blank)),
            }
            match token.kind {
                Kind::Literal => spans.push(("literal", token.text.to_owned())),
                Kind::Word => spans.push(("word", token.text.to_owned())),
                Kind::Name => spans.push(("name", token.text.to_owned())),
                // A separator, so that two literals around it are not joined.
                Kind::Other => spans.push(("", String::new())),
                Kind::Blank => {}
            }
        }
        spans.extend(comments(&gap));
        spans.retain(|(kind, _)| !kind.is_empty());
        spans
    }

    fn comments(blank: &[&str]) -> impl Iterator<Item = (&'static str, String)> {
        let comments = blank.iter().filter(|text| text.starts_with("--") || text.starts_with("/*"));
        comments.map(|text| ("comment", (*text).to_owned()))
    }

    #[test]
    fn difficult_texts_are_split_as_by_postgresql() {
        let cases: Value = serde_json::from_str(&data("nasty.json")).expect("JSON");
        let cases = cases.as_array().expect("cases");
        assert!(cases.len() >= 80, "{}", cases.len());
        for case in cases {
            let sql = case["sql"].as_str().expect("a text");

            let theirs: Vec<(String, String)> =
                serde_json::from_value(case["tokens"].clone()).expect("tokens");

            let ours: Vec<_> = spans(sql).into_iter().map(|(kind, text)| (kind.to_owned(), text)).collect();
            assert_eq!(ours, theirs, "{sql:?}");
            assert_eq!(
                tokens(sql).map(|token| token.text).collect::<String>(),
                sql,
                "the tokens give the whole text"
            );
        }
    }

    #[test]
    fn postgresqls_regression_tests_are_split_as_by_postgresql() {
        let folder = regression_tests();
        let scanned = data("scanner.tsv");
        let (mut files, mut different) = (0, Vec::new());
        for row in scanned.lines() {
            let [file, count, hash] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let sql = std::fs::read_to_string(folder.join(file)).expect(file);

            let ours = spans(&sql);

            let joined: String =
                ours.iter().flat_map(|(kind, text)| [kind, "\u{1f}", text, "\u{1e}"]).collect();
            if ours.len().to_string() != count || format!("{:016x}", fnv1a(&joined)) != hash {
                different.push(file);
            }
            files += 1;
        }
        assert!(files >= 400, "{files} files");
        assert!(different.is_empty(), "split differently: {different:?}");
    }
}
