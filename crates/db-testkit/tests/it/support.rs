//! Queries about databases, and migrations for one test.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until the state is reached.
pub(crate) async fn eventually(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !reached().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A folder that the server can write to, whichever user it runs as.
pub(crate) fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("db-testkit-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
    dir
}

/// A folder with one migration.
pub(crate) fn migration(sql: &str) -> TempDir {
    let dir = open_dir();
    fs::write(dir.path().join("1_only.sql"), sql).unwrap();
    dir
}

pub(crate) async fn connect(options: &PgConnectOptions) -> PgConnection {
    options.connect().await.unwrap()
}

/// The single value that a query returns.
pub(crate) async fn ask(options: &PgConnectOptions, sql: &str) -> String {
    let mut connection = connect(options).await;
    let answer = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

/// The databases whose name begins with `beginning`.
pub(crate) async fn databases(options: &PgConnectOptions, beginning: &str) -> Vec<String> {
    let mut connection = connect(options).await;
    let names =
        sqlx::query_scalar("select datname::text from pg_database where starts_with(datname, $1) order by 1")
            .bind(beginning)
            .fetch_all(&mut connection)
            .await
            .unwrap();
    connection.close().await.unwrap();
    names
}

/// The maintenance database of the kit's server.
pub(crate) fn maintenance(db: &db_testkit::TestDb) -> PgConnectOptions {
    db.options().database("postgres")
}

/// Whether the command line of a process has this path. Linux knows.
pub(crate) fn is_named_by_a_process(path: &Path) -> bool {
    let path = path.display().to_string();
    let names_it = |entry: fs::DirEntry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&path))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().any(names_it)
}
