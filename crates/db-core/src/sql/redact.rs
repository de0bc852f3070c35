//! SQL texts without their literals, for logs and errors.

use super::lexer::{Kind, tokens};

/// A statement is cut after this number of bytes.
const MAX_LENGTH: usize = 200;

/// A statement for logs and errors: on one line, shortened, and without its literals, which may contain secrets such as the password
/// in `ALTER ROLE`.
pub(crate) fn redact_sql(sql: &str) -> String {
    without_literals(sql, MAX_LENGTH, false)
}

/// The whole statement on one line, without comments, literals and numbers: texts that differ in these only are one statement.
#[must_use]
pub fn normalize(sql: &str) -> String {
    without_literals(sql, usize::MAX, true)
}

fn without_literals(sql: &str, most: usize, hides_numbers: bool) -> String {
    let mut redacted = String::new();
    for token in tokens(sql.trim()) {
        if redacted.len() >= most {
            redacted.push('…');
            break;
        }
        let text = token.text;
        match token.kind {
            Kind::Blank if redacted.ends_with(' ') => {}
            Kind::Blank => redacted.push(' '),
            // The prefix stays, since it is syntax and not part of the value.
            Kind::Literal => {
                let prefix = text.find(['\'', '$']).unwrap_or(0);
                redacted.push_str(&text[..prefix]);
                redacted.push_str("'…'");
            }
            Kind::Other if hides_numbers && is_number(text) => redacted.push('…'),
            // An unclosed name extends to the end of the statement, including its literals.
            Kind::Name if !token.is_closed => redacted.push_str("\"…"),
            Kind::Name | Kind::Word | Kind::Other => {
                redacted
                    .extend(text.chars().map(|c| if c.is_control() || c.is_whitespace() { ' ' } else { c }));
            }
        }
    }
    redacted
}

fn is_number(token: &str) -> bool {
    token.strip_prefix('.').unwrap_or(token).starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_statement_is_one_line_without_literals() {
        for (sql, redacted) in [
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
            // Without a space, `escape` is still a word, not a prefix.
            (r"select a like b escape'\', 'hunter2'", "select a like b escape'…', '…'"),
            (r"select a like b escape '\'and c = 'hunter2'", "select a like b escape '…'and c = '…'"),
            ("select 1 -- don't\n, 'hunter2'", "select 1 , '…'"),
            ("select 1 -- don't\r, 'hunter2'", "select 1 , '…'"),
            ("select /* don't */ 'hunter2'", "select '…'"),
            ("select /* /* */ don't */ 'hunter2'", "select '…'"),
            ("select \"O'Brien\", 'hunter2'", "select \"O'Brien\", '…'"),
            ("select \"a\"\"'b\", 'hunter2'", "select \"a\"\"'b\", '…'"),
            ("select \"never closed, 'hunter2'", "select \"…"),
            ("select E'a'\n'b\\'hunter2', c", "select E'…', c"),
            ("select E'a' -- and\n  'b\\'hunter2', c", "select E'…', c"),
            ("select E'a' 'b\\', c", "select E'…' '…', c"),
            ("select a$b$c, 'hunter2$b$'", "select a$b$c, '…'"),
            ("select $é$hunter2$é$", "select '…'"),
            (
                "select U&'\\0061hunter2' uescape '!', N'hunter2', x'01', B'1'",
                "select U&'…' uescape '…', N'…', x'…', B'…'",
            ),
            (r"select 1e'it\'s hunter2'", "select 1e'…'"),
            (r"select $1e'it\'s hunter2'", "select $1e'…'"),
            (r"select 0x1e'a\', b", "select 0x1e'…', b"),
            ("select 1 \"a\u{2028}b\"", "select 1 \"a b\""),
        ] {
            assert_eq!(redact_sql(sql), redacted, "{sql}");
        }
        assert!(redact_sql(&"ü ".repeat(1000)).chars().count() < 210);
    }

    #[test]
    fn statements_that_differ_in_literals_numbers_and_layout_have_one_normal_form() {
        for sql in [
            "select a1 from t where n = 17 and x > .5e3 and s = 'hunter2' limit $1",
            "select a1\n  from t -- of 17\n where n = 4 and x > 2 and s = $$ $$ limit $1",
        ] {
            assert_eq!(
                normalize(sql),
                "select a1 from t where n = … and x > … and s = '…' limit $1",
                "{sql}"
            );
        }
        let long = normalize(&"select 1, ".repeat(1000));
        assert_eq!(long, "select …, ".repeat(1000).trim());
        assert_ne!(normalize("select a1"), normalize("select a2"));
    }
}
