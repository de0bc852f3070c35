//! `db-axum` on a real PostgreSQL and over real HTTP.

mod errors;
mod health;
mod incidents;
mod monitoring;
mod problems;
mod streams;
mod support;
