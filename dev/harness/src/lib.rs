//! What the tests of several crates of this workspace set up. No user needs it: what users need is in `db-testkit`.
//!
//! - [`Process`]: this test program once more, in a process that is told what to do and may be killed;
//! - [`Log`]: the lines that all tests of a process write to the log;
//! - [`Pair`]: a primary and the standby that takes its place.

mod log;
mod processes;
mod standby;

pub use log::Log;
pub use processes::{Process, answer, note, resident, told};
pub use standby::Pair;
