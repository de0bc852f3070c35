//! What `db-events` promises, shown on a real PostgreSQL.

mod appending;
mod following;
mod schema;
mod support;
mod writing;
