//! What the kit, `db-core` and `db-layer` promise of a pooler. `.ci/through-pgbouncer` runs these, and the crates' own suites through
//! one.

mod deployed;
mod kit;
#[path = "../../../../crates/db-layer/tests/it/log.rs"]
mod log;
mod opening;
mod pools;
mod support;
