//! A cache of statement texts that do not change their session.

use std::ptr;

use sqlx::SqlStr;

use super::effects::changes_session;

/// A longer text is analyzed each time, so that it is not kept in memory.
const MAX_LENGTH: usize = 4096;

/// Texts that ran on a connection and do not change its session. Services run the same few texts again and again, and analyzing a text
/// costs as many instructions as acquiring and returning a connection.
///
/// A text is identified by its address: while the cache holds the text, no other text can have that address.
#[derive(Debug, Default)]
pub(crate) struct HarmlessTexts([Option<SqlStr>; 16]);

impl HarmlessTexts {
    /// Whether the text may change the session.
    pub(crate) fn changes_session(&mut self, sql: &SqlStr) -> bool {
        let text = sql.as_str();
        let slot = &mut self.0[((text.as_ptr().addr() >> 4) ^ text.len()) % 16];
        if slot.as_ref().is_some_and(|cached| ptr::eq(cached.as_str(), text)) {
            return false;
        }
        let changes = changes_session(text);
        if !changes && text.len() <= MAX_LENGTH {
            *slot = Some(sql.clone());
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
    fn a_cached_text_is_kept_alive_so_that_no_other_gets_its_address() {
        let mut texts = HarmlessTexts::default();
        let text: Arc<str> = "select 1".into();
        let sql = AssertSqlSafe(Arc::clone(&text)).into_sql_str();

        for _ in 0..3 {
            assert!(!texts.changes_session(&sql));
        }
        drop(sql);

        assert_eq!(Arc::strong_count(&text), 2, "one reference here, one in the cache");
    }

    #[test]
    fn a_text_that_changes_the_session_is_reported_each_time() {
        let mut texts = HarmlessTexts::default();
        for _ in 0..3 {
            for sql in ["begin", "select set_config('a.b', 'c', false)", "select 1 into temp t"] {
                assert!(texts.changes_session(&sql.into_sql_str()), "{sql}");
            }
            for n in 0..100 {
                let sql = AssertSqlSafe(format!("select {n}")).into_sql_str();
                assert!(!texts.changes_session(&sql), "{n}");
            }
        }
    }
}
