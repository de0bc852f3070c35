//! Tables that a crate of the layer needs.

/// Tables of one crate, as one migration: copy it into your `migrations/` under a version of your own, so that the `sqlx` CLI sees
/// one history.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// The name of the migration's files, without a version.
    pub name: &'static str,
    /// Makes the tables.
    pub up: &'static str,
    /// Removes the tables, with all that is in them.
    pub down: &'static str,
}
