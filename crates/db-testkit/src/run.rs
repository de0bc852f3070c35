//! Runs a test: called by the attribute macro, and by examples.

use std::env;
use std::sync::Once;

use tracing_subscriber::EnvFilter;

use crate::db::TestDb;

/// The environment variable with a filter of `tracing-subscriber`, such as `db_core=debug`.
const LOG: &str = "DB_TESTKIT_LOG";

/// Runs an example with an empty database of its own, in a runtime of its own. For code that cannot be an `async fn` with the
/// attribute [`test`](crate::test), such as examples in documentation, which are programs with a `main`.
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
/// If the example panics, or if there is no database for it.
pub fn run<T>(example: impl AsyncFnOnce(TestDb) -> T) -> T {
    run_test(None, example)
}

/// The database belongs to the test's future, so it is dropped with it, also in a panic.
///
/// # Panics
///
/// If the test panics, or if there is no database for it.
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

/// For the whole process, since tasks log from any thread. A test that installs its own subscriber must do so first.
fn print_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(asked) = env::var(LOG) else { return };
        let filter = EnvFilter::new(asked);
        // Fails if a subscriber is installed already; that one stays.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    });
}
