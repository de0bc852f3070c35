//! What `db-core` promises, shown on a real PostgreSQL.

mod addresses;
mod admission;
mod cancelling;
mod connecting;
mod events;
mod explained;
mod faults;
mod handlers;
mod leaving;
mod lent;
mod limits;
mod options;
mod pools;
mod queue;
mod refused;
mod retrying;
mod roles;
mod sealing;
mod stale;
mod standby;
mod support;
mod tls;
mod tracking;
mod transactions;
mod verdicts;
mod warming;
