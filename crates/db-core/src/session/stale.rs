//! Tells stale statements of the driver from those of users.

use super::text::Text;
use crate::sql::redact_sql;

/// The prefixes of names that the driver and `PgBouncer` give to prepared statements.
const PREFIXES: [&str; 2] = ["sqlx_s_", "PGBOUNCER_"];

/// Whether the driver prepared the statement that was stale or forgotten. A user's own statement, made by `PREPARE` and run
/// by `EXECUTE`, says nothing about the driver's, and would be stale again.
pub(crate) fn is_from_driver(error: &sqlx::Error, text: &Text) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    // A statement of the simple protocol is not prepared.
    !text.is_raw() && was_prepared_by_driver(error.code().as_deref(), error.message(), text.as_str())
}

fn was_prepared_by_driver(code: Option<&str>, message: &str, sql: &str) -> bool {
    match code {
        // The message contains the name in every language.
        Some("26000") => PREFIXES.iter().any(|prefix| message.contains(prefix)),
        _ => !executes(sql),
    }
}

/// Whether a statement runs one that was made by `PREPARE`.
fn executes(sql: &str) -> bool {
    let sql = redact_sql(sql).to_ascii_lowercase();
    let mut words = sql.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    match words.next() {
        Some("execute") => true,
        Some("explain" | "create") => words.any(|word| word == "execute"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_the_driver_are_told_from_those_of_users() {
        let (forgotten, stale) = (Some("26000"), Some("0A000"));
        for (code, message, sql, is_ours) in [
            (forgotten, "prepared statement \"sqlx_s_7\" does not exist", "select 1", true),
            (forgotten, "vorbereitete Anweisung »sqlx_s_7« existiert nicht", "select 1", true),
            (forgotten, "prepared statement \"PGBOUNCER_7\" does not exist", "select 1", true),
            (forgotten, "prepared statement \"nope\" does not exist", "execute nope", false),
            (forgotten, "prepared statement \"nope\" does not exist", "select f()", false),
            (stale, "cached plan must not change result type", "select * from t", true),
            (stale, "cached plan must not change result type", "select execute from t", true),
            (stale, "cached plan must not change result type", "/* a */ EXECUTE p(1)", false),
            (stale, "cached plan must not change result type", "explain (analyze) execute p", false),
            (stale, "cached plan must not change result type", "create temp table c as execute p", false),
        ] {
            assert_eq!(was_prepared_by_driver(code, message, sql), is_ours, "{sql}: {message}");
        }
    }
}
