//! Empty: this package has only tests. They need PgBouncer, so plain `cargo test` leaves the package out.
