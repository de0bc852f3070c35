//! `db-embedded` with real servers and real processes. On Linux, `/proc` shows which process holds what; elsewhere the tests
//! that need it wait for the folder alone.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod deaths;
mod failing;
mod guarding;
mod holder;
mod sharing;
mod starting;
mod support;
