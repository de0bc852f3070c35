//! The text of statements: taken apart as the server does it, shown without its literals, and judged by what it leaves behind.

mod known;
mod leaves;
mod lexer;
mod shown;

pub(crate) use known::Known;
pub(crate) use leaves::needs_session;
pub(crate) use shown::shown;
