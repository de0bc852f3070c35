//! What `orm()` promises, shown on a real PostgreSQL.

mod cancelling;
mod errors;
mod handlers;
mod mixed;
mod nesting;
mod others;
mod readme;
mod sealing;
mod support;
/// An example on the front page of db-testkit.
#[path = "../../../../crates/db-testkit/tests/examples/sea_orm.rs"]
#[expect(
    unreachable_pub,
    unused_qualifications,
    reason = "it is shown as a program writes it; a macro qualifies names"
)]
mod testkit;
mod transactions;
