//! Fixtures for the tests of several crates of this workspace. What users need is in `db-testkit`.
//!
//! - [`Process`]: this test program in a second process that takes orders and may be killed;
//! - [`Log`]: the lines that all tests of a process log.

mod log;
mod processes;

pub use log::Log;
pub use processes::{Process, answer, note, resident, told};
