//! What the attribute macro calls.

use std::error::Error as _;
use std::fmt::Write as _;
use std::future::Future;

use crate::db::TestDb;
use crate::error::Error;

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
            Err(error) => panic!("{}", chain(&error)),
        }
    })
}

fn chain(error: &Error) -> String {
    let mut text = format!("this test has no database: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  because: {error}");
        source = error.source();
    }
    text
}
