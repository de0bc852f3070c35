//! Removing logs, and the beginnings of logs.

mod retention;
mod trim;

pub use retention::{Removed, Retention};
pub use trim::Trim;

use std::time::Duration;

/// The most batches that one statement removes.
const CHUNK: i64 = 1000;

/// The pause after each statement that removes batches, unless the caller sets another one.
const PAUSE: Duration = Duration::from_millis(20);
