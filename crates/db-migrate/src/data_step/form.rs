//! The file of a step: which step it is, and when it stops other migrators.

use db_core::sql::{self, Kind, Statement};
use sqlx::migrate::Migration;

use crate::directive::directives;

/// The name of the step that a file is, if it is one.
pub(crate) fn step_name(file: &Migration) -> Option<&str> {
    directives(file.sql.as_str()).find_map(|(_, text)| Some(text.strip_prefix("step")?.trim()))
}

/// Whether the file of a step raises its exception under no condition.
pub(super) fn raises_always(file: &Migration) -> bool {
    let statements = sql::split(file.sql.as_str()).unwrap_or_default();
    raise(&statements) == Some(Raise::Always)
}

/// When other migrators stop at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raise {
    Always,
    IfThereIsSomethingToDo,
}

/// When the statements of a step's file raise an exception: they are one `do` block that does.
pub(crate) fn raise(statements: &[Statement<'_>]) -> Option<Raise> {
    let [statement] = statements else { return None };
    let mut tokens = statement.tokens();
    tokens.next().filter(|first| first.is("do"))?;
    let body = tokens.find(|token| token.kind == Kind::Literal)?.text;
    let body = if body.starts_with('$') { body.split_once('$')?.1.split_once('$')?.1 } else { &body[1..] };
    let words: Vec<String> = sql::tokens(body)
        .filter(|token| token.kind == Kind::Word)
        .map(|token| token.text.to_ascii_lowercase())
        .collect();
    let raise = words.windows(2).position(|pair| pair == ["raise", "exception"])?;
    let is_under_condition =
        words[..raise].iter().any(|word| ["if", "case", "for", "while"].contains(&&**word));
    Some(if is_under_condition { Raise::IfThereIsSomethingToDo } else { Raise::Always })
}
