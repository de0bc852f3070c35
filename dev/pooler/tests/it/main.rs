//! What the kit, `db-core` and `db-layer` promise of a pooler. `.ci/through-pgbouncer` runs these, and the crates' own suites through
//! one.

mod deployed;
mod kit;
mod opening;
mod pools;
mod support;
