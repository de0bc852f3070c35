//! What the attribute macro calls.

use std::future::Future;

use crate::db::TestDb;

/// Runs a test in a runtime of its own, with a database of its own. The database is the test's, so it goes with the test's
/// future, in a panic too.
///
/// # Panics
///
/// As the test does, and when there is no database for it.
pub fn run<F, T>(migrations: Option<&str>, test: impl FnOnce(TestDb) -> F) -> T
where
    F: Future<Output = T>,
{
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
