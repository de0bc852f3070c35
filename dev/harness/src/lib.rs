//! Fixtures for the tests of several crates of this workspace. What users need is in `db-testkit`.
//!
//! - [`Process`]: this test program in a second process that takes orders and may be killed;
//! - [`Log`]: the lines that all tests of a process log;
//! - [`Parrot`]: a server that says the same whatever it is asked.

mod log;
mod parrot;
mod processes;

pub use log::Log;
pub use parrot::Parrot;
pub use processes::{Process, answer, note, resident, told};
