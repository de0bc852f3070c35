//! The SQL text of statements: tokens, redaction, and effects on the session.

mod effects;
mod harmless;
mod lexer;
mod redact;

pub(crate) use effects::needs_session;
pub(crate) use harmless::HarmlessTexts;
pub(crate) use redact::redact_sql;
