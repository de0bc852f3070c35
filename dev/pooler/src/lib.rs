//! Nothing: the tests of this package need PgBouncer on the machine, so they are in none of the packages that `cargo test` builds.
