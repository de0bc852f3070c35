//! The SQL text of statements: tokens, statements of a text, redaction, and effects on the session.
//!
//! ```
//! use db_core::sql::split;
//!
//! let file = "create function one() returns int begin atomic select 1; end;\nvacuum -- a table; all of it\n t;";
//! let statements = split(file)?;
//! assert_eq!(statements[1].text, "vacuum -- a table; all of it\n t");
//! # assert_eq!(statements.len(), 2);
//! # Ok::<_, db_core::sql::SplitError>(())
//! ```

#[cfg(test)]
mod corpus;
mod effects;
mod harmless;
mod lexer;
mod redact;
mod split;

pub use crate::pooler::Needs;
pub(crate) use effects::needs_session;
pub use effects::{Effect, Lasts};
pub(crate) use harmless::HarmlessTexts;
pub use lexer::{Kind, Token, Tokens, tokens};
pub use redact::normalize;
pub(crate) use redact::redact_sql;
pub use split::{Position, SplitError, Statement, Unsplittable, split};
