//! Comments that speak to this crate: `-- db-migrate: WORD …`.

use db_core::sql::{Kind, tokens};

/// What such a comment begins with.
const NAME: &str = "db-migrate:";

/// What such a comment says, after `db-migrate:`.
pub(crate) fn directive(comment: &str) -> Option<&str> {
    let text = comment.strip_prefix("--").or_else(|| comment.strip_prefix("/*")?.strip_suffix("*/"))?;
    text.trim().strip_prefix(NAME).map(str::trim)
}

/// The directives of a file, each with the byte of the file where its comment begins.
pub(crate) fn directives(sql: &str) -> impl Iterator<Item = (usize, &str)> {
    // Most files have none, and are not split into tokens for that.
    let sql = if sql.contains(NAME) { sql } else { "" };
    let mut end = 0;
    tokens(sql).filter_map(move |token| {
        end += token.text.len();
        if token.kind != Kind::Blank {
            return None;
        }
        Some((end - token.text.len(), directive(token.text)?))
    })
}

/// Whether a directive is part of what a file says: it changes what is run, and when.
pub(crate) fn counts(directive: &str) -> bool {
    ["revision", "step"].contains(&directive.split_whitespace().next().unwrap_or_default())
}

/// Why a directive cannot be understood. Those that allow rules are read by the check.
pub(crate) fn problem(directive: &str) -> Option<&'static str> {
    let words: Vec<&str> = directive.split_whitespace().collect();
    match words[..] {
        ["allow", ..] | ["revision" | "step", _] => None,
        ["revision", ..] => Some("write `-- db-migrate: revision N`"),
        ["step", ..] => Some("write `-- db-migrate: step NAME`"),
        _ => Some("the directives are `allow RULE reason`, `step NAME` and `revision N`"),
    }
}

#[cfg(test)]
mod tests {
    use super::{directives, problem};

    #[test]
    fn only_comments_that_begin_with_its_name_speak_to_this_crate() {
        let sql = "-- db-migrate: step a\nselect '-- db-migrate: step b'; /* db-migrate: allow x y */ --db-migrate:revision 2\n\
                   -- see db-migrate: step c";

        let found: Vec<_> = directives(sql).collect();

        let texts: Vec<&str> = found.iter().map(|(_, text)| *text).collect();
        assert_eq!(texts, ["step a", "allow x y", "revision 2"]);
        let starts: Vec<&str> = found.iter().map(|(start, _)| &sql[*start..start + 13]).collect();
        assert_eq!(starts, ["-- db-migrate", "/* db-migrate", "--db-migrate:"]);
    }

    #[test]
    fn what_is_no_directive_is_told_with_what_to_write() {
        for good in ["allow ban-drop-table it is unused", "step fill", "revision 2", "allow"] {
            assert_eq!(problem(good), None, "{good}");
        }
        for bad in ["", "stpe fill", "step", "step a b", "revision"] {
            assert!(problem(bad).is_some(), "{bad}");
        }
    }
}
