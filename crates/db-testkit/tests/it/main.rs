//! Against real servers; those that are killed or filled with rubbish belong to one test alone.
#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod activity;
mod attribute;
mod child;
mod databases;
mod faults;
mod leftovers;
mod polls;
mod stops;
mod support;
mod templates;
