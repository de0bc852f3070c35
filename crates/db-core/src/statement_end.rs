//! How an abandoned statement ended.

use crate::cancels::Cancel;

/// How an abandoned statement ended.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct StatementEnd {
    /// The statement failed by itself, or because it was cancelled.
    pub(crate) failed: bool,
    /// The statement failed by itself: neither its effects nor those of the transaction that it was to commit are stored.
    pub(crate) refused: bool,
    /// The state of its cancel request. After an unanswered request, the statement may still run.
    pub(crate) cancel: Cancel,
}

impl StatementEnd {
    /// Combines both ends, `statement` being the earlier.
    pub(crate) fn after(self, statement: Self) -> Self {
        Self { failed: self.failed || statement.failed, refused: statement.refused, ..self }
    }
}
