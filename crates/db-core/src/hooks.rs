//! Hooks that run after a commit, or when its outcome is unknown.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use crate::statement_end::StatementEnd;

/// A function to run after a commit.
pub(crate) struct Hook {
    /// The number of open savepoints when the hook was added.
    pub(crate) level: usize,
    pub(crate) when: When,
    pub(crate) run: Box<dyn FnOnce() + Send>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Committed,
    NotRolledBack,
}

/// The hooks of a commit that was sent, until its outcome is known. If this is dropped first, it runs the hooks that tolerate an unknown
/// outcome: so the end of a future, task or runtime loses none of them.
///
/// Boxed, since most connections have none. The mutex is never locked: it makes the value `Sync`, as the connection must be.
#[derive(Default)]
pub(crate) struct PendingHooks(Option<Box<Mutex<Vec<Hook>>>>);

impl PendingHooks {
    pub(crate) fn add(&mut self, hooks: Vec<Hook>) {
        if !hooks.is_empty() {
            let all = self.0.get_or_insert_default();
            all.get_mut().unwrap_or_else(PoisonError::into_inner).extend(hooks);
        }
    }

    /// The commit succeeded.
    pub(crate) fn committed(&mut self) {
        run(self.take());
    }

    /// The commit failed, or nothing was in flight.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }

    /// The answer was not seen by its caller; this is how the statement ended.
    pub(crate) fn resolve(&mut self, end: StatementEnd) {
        match end {
            StatementEnd { refused: true, .. } => self.clear(),
            StatementEnd { failed: false, .. } => self.committed(),
            StatementEnd { .. } => self.unknown(),
        }
    }

    /// The outcome can no longer be learnt.
    pub(crate) fn unknown(&mut self) {
        let mut hooks = self.take();
        hooks.retain(|hook| hook.when == When::NotRolledBack);
        run(hooks);
    }

    fn take(&mut self) -> Vec<Hook> {
        let hooks = self.0.take().map(|all| all.into_inner().unwrap_or_else(PoisonError::into_inner));
        hooks.unwrap_or_default()
    }
}

impl Drop for PendingHooks {
    #[inline]
    fn drop(&mut self) {
        // This runs for each statement, and hardly any has hooks.
        if self.0.is_some() {
            self.unknown();
        }
    }
}

impl fmt::Debug for PendingHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingHooks")
    }
}

/// Runs all hooks in the order in which they were added. A panic in one does not prevent the others.
fn run(hooks: Vec<Hook>) {
    let mut first: Option<Box<dyn Any + Send>> = None;
    for hook in hooks {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(hook.run)) {
            first.get_or_insert(panic);
        }
    }
    // A second panic during unwinding would abort the process.
    if let Some(panic) = first.filter(|_| !std::thread::panicking()) {
        resume_unwind(panic);
    }
}
