//! What `db-notify` promises, shown on a real PostgreSQL.

mod bus;
mod conformance;
mod faults;
mod golden;
mod in_tx;
mod interleaving;
mod model;
mod processes;
mod runtimes;
mod storms;
mod support;
mod trouble;
mod watched;
