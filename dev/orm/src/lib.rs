//! Entities for the tests of this crate. They show what the crates promise of `SeaORM`, and that other libraries on sqlx run on our executors.
#![expect(
    missing_docs,
    reason = "entities are their columns, and the derive macros add what has no documentation"
)]

pub mod bakery;
pub mod blog;
