//! The statements of files that make, change or drop extensions.

use std::ops::Range;

use db_core::sql::{Token, split};

/// A statement that makes, changes or drops an extension.
pub(super) struct Extension {
    pub(super) at: Range<usize>,
    pub(super) name: String,
    pub(super) is_made: bool,
}

/// Those of a file.
pub(super) fn extensions(sql: &str) -> Vec<Extension> {
    let statements = split(sql).unwrap_or_default();
    let found = statements.iter().filter_map(|statement| {
        let tokens: Vec<Token<'_>> = statement.tokens().collect();
        let (is_made, rest) = match &*tokens {
            [first, second, rest @ ..]
                if first.is_any(&["create", "alter", "drop"]) && second.is("extension") =>
            {
                (first.is("create"), rest)
            }
            [first, on, second, rest @ ..]
                if first.is("comment") && on.is("on") && second.is("extension") =>
            {
                (false, rest)
            }
            _ => return None,
        };
        let name = rest.iter().find(|token| !token.is_any(&["if", "not", "exists"]))?.name()?;
        Some(Extension { at: statement.start..statement.start + statement.text.len(), name, is_made })
    });
    found.collect()
}

/// A file with blanks for the statements about these extensions. Lines and columns stay as they are.
pub(super) fn without(sql: &str, skipped: &[String]) -> String {
    let mut text = sql.to_owned();
    // From the end, since a blank may have fewer bytes than what it stands for.
    for Extension { at, .. } in extensions(sql).into_iter().rev().filter(|it| skipped.contains(&it.name)) {
        let blank: String = sql[at.clone()].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        text.replace_range(at, &blank);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Extension, extensions};

    #[test]
    fn statements_of_extensions_are_found_with_their_names() {
        let sql = "create table t (); CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" with schema x;\n\
                   drop extension if exists hstore cascade; comment on extension pgcrypto is 'y'; select 'create extension z'";
        let found: Vec<(String, bool)> =
            extensions(sql).into_iter().map(|it| (it.name, it.is_made)).collect();
        let expected = [("uuid-ossp", true), ("hstore", false), ("pgcrypto", false)];
        assert_eq!(found, expected.map(|(name, is_made)| (name.to_owned(), is_made)));
        let Extension { at, .. } = extensions(sql).swap_remove(1);
        assert_eq!(&sql[at], "drop extension if exists hstore cascade");
    }
}
