//! What runs once something is committed, and what runs also when nobody can tell whether it is.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use crate::pool::Rest;

/// Something to run after a commit.
pub(crate) struct Hook {
    /// How many savepoints were open when it was given.
    pub(crate) level: usize,
    pub(crate) when: When,
    pub(crate) run: Box<dyn FnOnce() + Send>,
}

/// What must be known of the commit for a hook to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Committed,
    NotRolledBack,
}

/// The hooks of a commit that was sent, until its outcome is known. Dropped before that, it runs those that need only
/// that nobody knows of a rollback: so the end of a future, of a task or of a runtime loses none.
///
/// In a box, since most connections have none. The mutex is never locked: it makes the value `Sync`, as the connection that
/// holds it is.
#[derive(Default)]
pub(crate) struct Doubt(Option<Box<Mutex<Vec<Hook>>>>);

impl Doubt {
    pub(crate) fn add(&mut self, hooks: Vec<Hook>) {
        if !hooks.is_empty() {
            let all = self.0.get_or_insert_default();
            all.get_mut().unwrap_or_else(PoisonError::into_inner).extend(hooks);
        }
    }

    /// It is committed.
    pub(crate) fn committed(&mut self) {
        run(self.take());
    }

    /// Nothing of it is stored, or nothing was in doubt.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }

    /// Nobody saw the answer, and this is how what was sent came to its end.
    pub(crate) fn came_to(&mut self, rest: Rest) {
        match rest {
            Rest { refused: true, .. } => self.forget(),
            Rest { failed: false, .. } => self.committed(),
            Rest { .. } => self.unknown(),
        }
    }

    /// Nobody will ever know.
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

impl Drop for Doubt {
    #[inline]
    fn drop(&mut self) {
        // Of each statement, of which hardly any has something to run.
        if self.0.is_some() {
            self.unknown();
        }
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doubt")
    }
}

/// Runs all of them, in the order in which they were given. The panic of one does not keep the others from running.
fn run(hooks: Vec<Hook>) {
    let mut first: Option<Box<dyn Any + Send>> = None;
    for hook in hooks {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(hook.run)) {
            first.get_or_insert(panic);
        }
    }
    // A second panic on the way out of another would end the process.
    if let Some(panic) = first.filter(|_| !std::thread::panicking()) {
        resume_unwind(panic);
    }
}
