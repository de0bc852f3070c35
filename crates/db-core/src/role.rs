//! Whether a session may write, and whether the server or the client decides that.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use sqlx::error::{DatabaseError, ErrorKind};
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};

/// A SQL expression for a [`Role`] as text. A standby is always read-only. Otherwise, the default for transactions decides, by the
/// place where it was set (PostgreSQL's manual, chapter 54.24, "`pg_settings`"), which is queried only for a read-only session.
macro_rules! role_expression {
    () => {
        "case when pg_is_in_recovery() then 'withdrawn'
              when current_setting('transaction_read_only') = 'off' then 'writes'
              else (select case when source in ('configuration file', 'command line', 'environment variable', 'global')
                                then 'withdrawn' else 'by choice' end
                    from pg_settings where name = 'default_transaction_read_only') end"
    };
}
pub(crate) use role_expression;

/// Whether a session may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Writes,
    /// The server accepts no writes: it is a standby, or its configuration makes it read-only.
    Withdrawn,
    /// The role, the database, the address or the session itself chose to be read-only.
    ByChoice,
}

impl Role {
    pub(crate) fn of(text: &str) -> Self {
        match text {
            "withdrawn" => Self::Withdrawn,
            "by choice" => Self::ByChoice,
            _ => Self::Writes,
        }
    }

    /// Queries the role, outside a transaction. The answer also proves that the link works.
    pub(crate) async fn ask(raw: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = raw.fetch_one(sqlx::raw_sql(concat!("select ", role_expression!()))).await?;
        Ok(Self::of(row.try_get(0)?))
    }
}

/// Error 25006 of a session that is read-only by its server's decision, because the server is a standby or was made read-only, and not
/// by the client's choice. It behaves like the driver's error; [`Verdict`](crate::class::Verdict) recognizes it.
pub(crate) struct NotWritable(Box<dyn DatabaseError>);

impl NotWritable {
    /// Wraps the driver's error.
    pub(crate) fn mark(error: sqlx::Error) -> sqlx::Error {
        match error {
            sqlx::Error::Database(error) => sqlx::Error::Database(Box::new(Self(error))),
            other => other,
        }
    }

    /// Whether the error was wrapped by [`mark`](Self::mark). The check uses a method that sqlx calls only for its own pool: everything
    /// else shows the driver's error, so that programs which look for that find it.
    pub(crate) fn is(error: &dyn DatabaseError) -> bool {
        error.is_transient_in_connect_phase()
    }
}

impl fmt::Debug for NotWritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NotWritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for NotWritable {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl DatabaseError for NotWritable {
    fn message(&self) -> &str {
        self.0.message()
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.0.code()
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self.0.as_error()
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self.0.as_error_mut()
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self.0.into_error()
    }

    fn is_transient_in_connect_phase(&self) -> bool {
        true
    }

    fn constraint(&self) -> Option<&str> {
        self.0.constraint()
    }

    fn table(&self) -> Option<&str> {
        self.0.table()
    }

    fn kind(&self) -> ErrorKind {
        self.0.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_what_the_server_answers() {
        assert_eq!(
            ["writes", "withdrawn", "by choice"].map(Role::of),
            [Role::Writes, Role::Withdrawn, Role::ByChoice]
        );
    }
}
