//! The numbers of logs and writers.

use std::fmt;

/// A log, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub i64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A writer that may have to send a batch again, by a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriterId(pub i64);

impl WriterId {
    /// A random number from the operating system: two processes that seed a generator alike would be one writer. A writer that may
    /// have to send a batch again after a restart must keep its number.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness.
    #[must_use]
    pub fn random() -> Self {
        let number = getrandom::u64().expect("the operating system gives random numbers");
        Self(number.cast_signed())
    }
}
