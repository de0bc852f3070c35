//! Tests of `db-testkit`, `db-core` and `db-layer` with a pooler. `.ci/through-pgbouncer` runs them, and then the crates' own
//! suites through a pooler.

mod deployed;
mod kit;
mod opening;
mod pools;
mod support;
