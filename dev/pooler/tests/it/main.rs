//! Tests of `db-testkit`, `db-core` and `db-layer` with a pooler. `.ci/through-pgbouncer` runs them, and then the crates' own
//! suites through a pooler.

mod deployed;
/// An example on the front page of db-testkit.
#[path = "../../../../crates/db-testkit/tests/examples/pooled.rs"]
mod example;
mod kit;
mod opening;
mod pools;
mod support;
