//! Whose prepared statement it was that was found stale.

use crate::sql::shown;
use crate::text::Text;

/// What names of prepared statements begin with that no user has given: the driver's, and those of `PgBouncer`, which has names of
/// its own for what passes through it.
const NAMES: [&str; 2] = ["sqlx_s_", "PGBOUNCER_"];

/// Whether the statement that was stale or forgotten was prepared by the driver. One of the user's own, made by `PREPARE` and run
/// by `EXECUTE`, says nothing of the driver's, and it would be as stale again.
pub(crate) fn is_of_the_driver(error: &sqlx::Error, text: &Text) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    // What goes by the simple protocol is not prepared.
    !text.is_raw() && is_of_the_drivers(error.code().as_deref(), error.message(), text.as_str())
}

fn is_of_the_drivers(code: Option<&str>, message: &str, sql: &str) -> bool {
    match code {
        // In each language of the server's, the message has the name.
        Some("26000") => NAMES.iter().any(|name| message.contains(name)),
        _ => !executes(sql),
    }
}

/// Whether a statement runs one that was made by `PREPARE`.
fn executes(sql: &str) -> bool {
    let sql = shown(sql).to_ascii_lowercase();
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
    fn a_forgotten_statement_is_the_drivers_by_its_name_and_a_stale_one_by_what_runs_it() {
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
            assert_eq!(is_of_the_drivers(code, message, sql), is_ours, "{sql}: {message}");
        }
    }
}
