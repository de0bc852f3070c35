//! Statements of `SeaORM` in the form that a session sends.

use sea_orm::{DbErr, Statement, Value, Values};
use sea_query_sqlx::SqlxValues;
use sqlx::AssertSqlSafe;

use super::error::querying;
use crate::session::Text;

/// A statement with bound values.
///
/// # Errors
///
/// If an unsigned number is larger than a `bigint`: `sea-query-sqlx` would panic.
pub(super) fn bound(statement: Statement) -> Result<Text, DbErr> {
    let Statement { sql, values, .. } = statement;
    let values = values.unwrap_or_else(|| Values(Vec::new()));
    if values.0.iter().any(is_too_large) {
        let what = "a number is larger than a bigint can be";
        return Err(querying(sqlx::Error::Encode(what.into())));
    }
    Ok(Text::of(sqlx::query_with(AssertSqlSafe(sql), SqlxValues(values))))
}

/// One or several statements, by the simple protocol.
pub(super) fn raw(sql: &str) -> Text {
    Text::of(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
}

fn is_too_large(value: &Value) -> bool {
    matches!(value, Value::BigUnsigned(Some(number)) if i64::try_from(*number).is_err())
}
