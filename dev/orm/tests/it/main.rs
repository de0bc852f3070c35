//! What `orm()` promises, shown on a real PostgreSQL.

mod cancelling;
mod errors;
mod handlers;
mod mixed;
mod nesting;
mod others;

mod readme;
mod support;
mod transactions;
