//! A statement on its way to the driver.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{AssertSqlSafe, Execute, Postgres, SqlSafeStr, SqlStr};

use crate::pooler::Needs;
use crate::sql::{self, Known};

/// A statement taken apart, so that its text can be read before it is sent. It is sent from where it is, as `&mut Text`: the
/// driver's future holds what it is given, and is made for every statement.
pub(crate) struct Text {
    sql: SqlStr,
    /// What is sent in place of the text, if it is not the text itself.
    sent_as: Option<SqlStr>,
    statement: Option<PgStatement>,
    /// None once they were sent.
    arguments: Option<Result<Option<PgArguments>, BoxDynError>>,
    persistent: bool,
    /// Sent by the simple protocol, and maybe more than one statement.
    is_raw: bool,
}

impl Text {
    pub(crate) fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let arguments = query.take_arguments();
        let is_raw = matches!(arguments, Ok(None));
        let statement = query.statement().cloned();
        let persistent = query.persistent();
        // A clone of text that the caller owns is shared from here on, so that further ones are cheap.
        let sql = query.sql().clone();
        Self { sql, sent_as: None, statement, arguments: Some(arguments), persistent, is_raw }
    }

    pub(crate) fn sql_str(&self) -> &SqlStr {
        &self.sql
    }

    pub(crate) fn as_str(&self) -> &str {
        self.sql.as_str()
    }

    /// Whether it goes by the simple protocol.
    pub(crate) fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// Has it sent under another text, if it is one that is prepared and kept.
    pub(crate) fn mark(&mut self, mark: &str) {
        if self.persistent && matches!(self.arguments, Some(Ok(Some(_)))) {
            self.sent_as = Some(AssertSqlSafe(format!("{} {mark}", self.sql.as_str())).into_sql_str());
        }
    }

    /// What it needs to be sent once more, if it is one that is prepared and kept: only those have plans that become stale.
    pub(crate) fn spare(&self) -> Option<PgArguments> {
        match &self.arguments {
            Some(Ok(Some(arguments))) if self.persistent => Some(arguments.clone()),
            _ => None,
        }
    }

    /// Makes it what it was before it was sent.
    pub(crate) fn refill(&mut self, spare: PgArguments) {
        self.arguments = Some(Ok(Some(spare)));
    }

    /// Whether the session may be another one afterwards, as far as the text shows it. A raw text may be many statements, and
    /// ends at the first that fails: it is always suspected.
    pub(crate) fn changes_session(&self, known: &mut Known) -> bool {
        self.is_raw || known.changes_session(&self.sql)
    }

    /// What it needs of its session that a pooler would not keep for it.
    pub(crate) fn needs_session(&self) -> Option<Needs> {
        sql::needs_session(self.as_str(), self.is_raw)
    }
}

impl<'q> Execute<'q, Postgres> for &'q mut Text {
    fn sql(self) -> SqlStr {
        self.sent_as.as_ref().unwrap_or(&self.sql).clone()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}
