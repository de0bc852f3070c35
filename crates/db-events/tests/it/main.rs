//! What `db-events` promises, shown on a real PostgreSQL.

mod appender;
mod appending;
mod catching_up;
mod checker;
mod contention;
mod following;
mod history;
mod paging;
mod processes;
mod schema;
mod sharing;
mod support;
mod waking;
mod watchers;
mod watching;
mod writing;
