//! Whether a session may write, and on whose decision.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use sqlx::error::{DatabaseError, ErrorKind};
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};

/// Asks a session for its role: an expression with the value of a [`Role`] as text. A standby is one by itself; else it is the
/// default for transactions that counts, by where it was set (PostgreSQL's manual, chapter 54.24, "`pg_settings`"), which is
/// looked up for a session that may not write only.
macro_rules! question {
    () => {
        "case when pg_is_in_recovery() then 'withdrawn'
              when current_setting('transaction_read_only') = 'off' then 'writes'
              else (select case when source in ('configuration file', 'command line', 'environment variable', 'global')
                                then 'withdrawn' else 'by choice' end
                    from pg_settings where name = 'default_transaction_read_only') end"
    };
}
pub(crate) use question;

/// Whether a session may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Writes,
    /// Its server takes no writes: it is a standby, or its configuration says so.
    Withdrawn,
    /// The role, the database, the address or the session itself says that it only reads.
    ByChoice,
}

impl Role {
    pub(crate) fn of(answer: &str) -> Self {
        match answer {
            "withdrawn" => Self::Withdrawn,
            "by choice" => Self::ByChoice,
            _ => Self::Writes,
        }
    }

    /// Asks, outside of a transaction. That is a sign of life, too.
    pub(crate) async fn ask(raw: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = raw.fetch_one(sqlx::raw_sql(concat!("select ", question!()))).await?;
        Ok(Self::of(row.try_get(0)?))
    }
}

/// 25006 of a session that may not write on its server's decision, and not by its own or its role's choice: the server is a
/// standby, or was made read-only. It is to the program what the driver's error is, and [`Verdict`](crate::class::Verdict)
/// knows it again.
pub(crate) struct NotWritable(Box<dyn DatabaseError>);

impl NotWritable {
    /// Marks the driver's error.
    pub(crate) fn mark(error: sqlx::Error) -> sqlx::Error {
        match error {
            sqlx::Error::Database(said) => sqlx::Error::Database(Box::new(Self(said))),
            other => other,
        }
    }

    /// Whether that error was marked. Asked by a method that sqlx has for its pool, which no pool of ours is: what the error is
    /// otherwise shows the driver's, so that a program which looks for that finds it.
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
