//! `db-axum` on a real PostgreSQL and over real HTTP.

mod errors;
mod health;
mod incidents;
mod monitoring;
mod streams;
mod support;
