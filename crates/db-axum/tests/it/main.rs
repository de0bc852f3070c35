//! `db-axum` on a real PostgreSQL and over real HTTP.

mod admission;
mod errors;
mod handlers;
mod health;
mod incidents;
mod monitoring;
mod overload;
mod problems;
mod rate_limit;
mod streams;
mod support;
mod transactions;
