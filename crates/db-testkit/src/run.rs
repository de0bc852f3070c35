//! Runs a test: what the attribute macro calls, and examples.

use std::env;
use std::sync::Once;

use tracing_subscriber::EnvFilter;

use crate::db::TestDb;

/// Which log lines of a test to print, as `tracing-subscriber` reads them: `db_core=debug`.
const LOG: &str = "DB_TESTKIT_LOG";

/// Runs an example with an empty database of its own, in a runtime of its own. For what cannot be an `async fn` with the attribute
/// [`test`](crate::test): examples in documentation, which are programs with a `main`.
///
/// ```
/// db_testkit::run(async |db| {
///     let one: i32 = sqlx::query_scalar("select 1").fetch_one(&db.pool()).await.expect("an answer");
///     assert_eq!(one, 1);
/// });
/// ```
///
/// # Panics
///
/// As the example does, and when there is no database for it.
pub fn run<T>(example: impl AsyncFnOnce(TestDb) -> T) -> T {
    run_test(None, example)
}

/// The database is the test's, so it goes with the test's future, in a panic too.
///
/// # Panics
///
/// As the test does, and when there is no database for it.
pub fn run_test<T>(migrations: Option<&str>, test: impl AsyncFnOnce(TestDb) -> T) -> T {
    print_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the operating system grants two threads");
    runtime.block_on(async {
        let created = match migrations {
            Some(folder) => TestDb::create(folder).await,
            None => TestDb::empty().await,
        };
        match created {
            Ok(db) => test(db).await,
            Err(error) => panic!("this test has no database: {}", error.with_sources()),
        }
    })
}

/// For the whole process, since tasks write from any thread. A test that listens by itself goes first, or fails.
fn print_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(asked) = env::var(LOG) else { return };
        let filter = EnvFilter::new(asked);
        // Somebody else's listener, if there is one, goes on.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    });
}
