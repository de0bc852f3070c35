//! What `db-core` promises, shown on a real PostgreSQL.

mod cancelling;
mod connecting;
mod handlers;
mod pools;
mod sealing;
mod support;
mod transactions;
