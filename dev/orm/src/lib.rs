//! Entities for the tests of this crate. They show what the crates promise of `SeaORM`, and that other libraries on sqlx run on our executors.
#![expect(
    missing_docs,
    unused_qualifications,
    reason = "entities are their columns, and the derive macros write code without documentation"
)]

pub mod blog;
pub mod cakes;
pub mod sealed;

/// The examples of `db_core::orm`: `cargo test` builds db-core without that module.
#[cfg(doctest)]
#[doc = include_str!("../../../crates/db-core/src/orm/example.md")]
struct Examples;
