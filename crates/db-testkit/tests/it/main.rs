//! `db-testkit` on real servers; tests that kill a server or fill it have one of their own.
#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod activity;
mod attribute;
mod child;
mod clusters;
mod databases;
mod examples;
mod faults;
mod fixtures;
mod leftovers;
mod looks;
mod many;
mod polls;
mod recordings;
mod redises;
mod script_logins;
mod scripted;
mod stops;
mod support;
mod templates;
