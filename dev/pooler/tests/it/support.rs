//! Helpers of the tests.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

/// Limit for every wait in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A PgBouncer before 1.21, which does not track prepared statements.
pub(crate) fn old_program() -> PathBuf {
    let named = std::env::var_os("DB_TESTKIT_PGBOUNCER_OLD");
    named.expect("DB_TESTKIT_PGBOUNCER_OLD names a PgBouncer before 1.21; .ci/pgbouncer prints one").into()
}

/// A folder that the server can write to, whichever user it runs as.
pub(crate) fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("db-testkit-test-").tempdir_in("/tmp").expect("a folder");
    set_permissions(dir.path(), Permissions::from_mode(0o1777)).expect("permissions");
    dir
}
