//! As much of SQL as a session has to read.

/// The statements of a simple query, cut at semicolons outside of quotes and comments. Empty ones are left out.
pub(super) fn statements(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut begin, mut rest) = (0, text);
    while !rest.is_empty() {
        let at = text.len() - rest.len();
        if rest.starts_with(';') {
            found.push(&text[begin..at]);
            begin = at + 1;
            rest = &rest[1..];
        } else {
            rest = &rest[piece(rest)..];
        }
    }
    found.push(&text[begin..]);
    found.retain(|it| !it.trim().is_empty());
    found
}

/// With one space in place of white space outside of quotes, and without a semicolon at the end.
pub(super) fn squeezed(text: &str) -> String {
    let mut squeezed = String::with_capacity(text.len());
    let mut rest = text.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).trim_start();
    while let Some(next) = rest.chars().next() {
        if next.is_whitespace() {
            squeezed.push(' ');
            rest = rest.trim_start();
        } else {
            let (piece, after) = rest.split_at(piece(rest));
            squeezed.push_str(piece);
            rest = after;
        }
    }
    squeezed
}

/// The length of the quoted text, the comment or the character that this begins with.
fn piece(text: &str) -> usize {
    let to =
        |begin: usize, end: &str| text[begin..].find(end).map_or(text.len(), |at| begin + at + end.len());
    match text.as_bytes()[0] {
        b'\'' => to(1, "'"),
        b'"' => to(1, "\""),
        b'-' if text.starts_with("--") => to(2, "\n"),
        b'/' if text.starts_with("/*") => to(2, "*/"),
        b'$' => match text[1..].find('$') {
            Some(end) if text[1..=end].bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_') => {
                to(end + 2, &text[..end + 2])
            }
            _ => 1,
        },
        _ => text.chars().next().map_or(1, char::len_utf8),
    }
}

/// A name, as an identifier or in quotes, at the beginning of the text.
pub(super) fn name(text: &str) -> Option<String> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('"') {
        let (mut name, mut rest) = (String::new(), rest);
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None => return Some(name),
            }
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_lowercase())
}

/// The texts in single quotes, `E'…'` included, in their order.
pub(super) fn literals(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\'') {
        let is_escaped = before.ends_with(['e', 'E']);
        let mut literal = String::new();
        let mut chars = after.char_indices().peekable();
        let mut end = after.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' if is_escaped => literal.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if chars.next_if(|(_, next)| *next == '\'').is_some() => literal.push('\''),
                '\'' => {
                    end = at + 1;
                    break;
                }
                other => literal.push(other),
            }
        }
        found.push(literal);
        rest = &after[end..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_cut_outside_of_quotes_and_comments() {
        let text = "select ';', \"a;b\"; -- not; here\nselect $x$;$$;$x$ /* ; */;; commit";

        let found = statements(text);

        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "select ';', \"a;b\"");
        assert_eq!(found[2].trim(), "commit");
        assert_eq!(statements("select $1; select '"), ["select $1", " select '"]);
        assert_eq!(statements("é;ü"), ["é", "ü"]);
    }

    #[test]
    fn white_space_is_kept_in_quotes_only() {
        assert_eq!(squeezed("\n select  'a  b',\t\"\n\" ; ; "), "select 'a  b', \"\n\"");
        assert_eq!(squeezed(" ; "), "");
    }

    #[test]
    fn names_are_folded_unless_they_are_quoted() {
        assert_eq!(name("Foo_1 rest").as_deref(), Some("foo_1"));
        assert_eq!(name(" \"Foo \"\"x\"\" \" rest").as_deref(), Some("Foo \"x\" "));
        assert_eq!(name("\"open"), None);
        assert_eq!(name(""), None);
    }

    #[test]
    fn literals_are_read_with_their_escapes() {
        assert_eq!(literals("f(E'a\\'b', 'it''s', '')"), ["a'b", "it's", ""]);
    }
}
