//! Verdicts on texts, kept by text.

use std::ptr;

use sqlx::SqlStr;

use super::leaves::changes_session;

/// A text that is longer is judged each time, so that it is not held.
const LONGEST: usize = 4096;

/// Texts that were run on a connection and change nothing about its session. Services run the same few again and again, and judging one
/// costs as many instructions as taking a connection and giving it back.
///
/// A text is known by its address: as long as it is held here, no other text can have that.
#[derive(Debug, Default)]
pub(crate) struct Known([Option<SqlStr>; 16]);

impl Known {
    /// Whether the session may be another one after this text.
    pub(crate) fn changes_session(&mut self, sql: &SqlStr) -> bool {
        let text = sql.as_str();
        let place = &mut self.0[((text.as_ptr().addr() >> 4) ^ text.len()) % 16];
        if place.as_ref().is_some_and(|known| ptr::eq(known.as_str(), text)) {
            return false;
        }
        let changes = changes_session(text);
        if !changes && text.len() <= LONGEST {
            *place = Some(sql.clone());
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sqlx::{AssertSqlSafe, SqlSafeStr};

    use super::*;

    #[test]
    fn a_text_that_is_known_is_held_so_that_no_other_has_its_address() {
        let mut known = Known::default();
        let text: Arc<str> = "select 1".into();
        let sql = AssertSqlSafe(Arc::clone(&text)).into_sql_str();

        for _ in 0..3 {
            assert!(!known.changes_session(&sql));
        }
        drop(sql);

        assert_eq!(Arc::strong_count(&text), 2, "by us, and as a known one");
    }

    #[test]
    fn what_changes_the_session_is_said_each_time() {
        let mut known = Known::default();
        for _ in 0..3 {
            for sql in ["begin", "select set_config('a.b', 'c', false)", "select 1 into temp t"] {
                assert!(known.changes_session(&sql.into_sql_str()), "{sql}");
            }
            for n in 0..100 {
                let sql = AssertSqlSafe(format!("select {n}")).into_sql_str();
                assert!(!known.changes_session(&sql), "{n}");
            }
        }
    }
}
