//! What `db-core` promises, shown on a real PostgreSQL.

mod cancelling;
mod connecting;
mod faults;
mod handlers;
mod pools;
mod sealing;
mod support;
mod transactions;
