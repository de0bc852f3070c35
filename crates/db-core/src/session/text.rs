//! A statement to be sent.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{AssertSqlSafe, Execute, Postgres, SqlSafeStr, SqlStr};

use crate::pooler::Needs;
use crate::sql::{self, HarmlessTexts};

/// A statement, split into its text and arguments so that the text can be read before it is sent. It is sent as `&mut Text`, which
/// keeps the driver's future small.
pub(crate) struct Text {
    sql: SqlStr,
    /// The text to send, if it differs from `sql`.
    sent_as: Option<SqlStr>,
    statement: Option<PgStatement>,
    /// `None` once the statement was sent.
    arguments: Option<Result<Option<PgArguments>, BoxDynError>>,
    persistent: bool,
    /// Sent by the simple protocol, and may contain several statements.
    is_raw: bool,
}

impl Text {
    pub(crate) fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let arguments = query.take_arguments();
        let is_raw = matches!(arguments, Ok(None));
        let statement = query.statement().cloned();
        let persistent = query.persistent();
        // A clone of a text that the caller owns is shared from here on, so that further clones are cheap.
        let sql = query.sql().clone();
        Self { sql, sent_as: None, statement, arguments: Some(arguments), persistent, is_raw }
    }

    pub(crate) fn sql_str(&self) -> &SqlStr {
        &self.sql
    }

    pub(crate) fn as_str(&self) -> &str {
        self.sql.as_str()
    }

    /// Whether the statement is sent by the simple protocol.
    pub(crate) fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// Appends `mark` to the text that is sent, if the statement is prepared and cached.
    pub(crate) fn mark(&mut self, mark: &str) {
        if self.persistent && matches!(self.arguments, Some(Ok(Some(_)))) {
            self.sent_as = Some(AssertSqlSafe(format!("{} {mark}", self.sql.as_str())).into_sql_str());
        }
    }

    /// A copy of the arguments for sending the statement again. `None` if it is not prepared and cached: other statements have no plan
    /// that could be stale.
    pub(crate) fn copy_arguments(&self) -> Option<PgArguments> {
        match &self.arguments {
            Some(Ok(Some(arguments))) if self.persistent => Some(arguments.clone()),
            _ => None,
        }
    }

    /// Restores the arguments so the statement can be sent again.
    pub(crate) fn refill(&mut self, arguments: PgArguments) {
        self.arguments = Some(Ok(Some(arguments)));
    }

    /// Whether the statement may change the session, as far as its text shows. A raw text always may: it may contain several
    /// statements, of which the first failure skips the rest.
    pub(crate) fn changes_session(&self, texts: &mut HarmlessTexts) -> bool {
        self.is_raw || texts.changes_session(&self.sql)
    }

    /// What the statement needs of its session that a pooler does not keep.
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
