//! The promises of `db-notify`, checked on a real PostgreSQL and on `MemoryLink`.

mod bus;
mod conformance;
mod faults;
mod golden;
mod in_tx;
mod interleaving;
mod model;
mod observing;
mod processes;
mod runtimes;
mod storms;
mod support;
mod trouble;
mod watched;
