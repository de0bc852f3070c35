//! Real servers, real processes, real deaths. Linux tells who holds what in `/proc`; elsewhere the tests that need that
//! knowledge wait for the folder alone.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod deaths;
mod failing;
mod guarding;
mod holder;
mod sharing;
mod starting;
mod support;
