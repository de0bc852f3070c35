//! What `db-events` promises, shown on a real PostgreSQL.

mod appender;
mod appending;
mod catching_up;
mod checker;
mod contention;
mod continuity;
mod following;
mod history;
mod in_transactions;
mod lost_tail;
mod paging;
mod removal;
mod runtimes;
mod schema;
mod sharing;
mod support;
mod trimming;
mod unsteady;
mod waking;
mod watchers;
mod watching;
mod writing;
