//! What the tests share.

use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_testkit::TestDb;

/// No wait in these tests is longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

/// A pool of so many connections, which waits for half a second.
pub(crate) fn pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = Duration::from_millis(500);
    Pool::new(
        &config(db),
        PoolOptions { name: "test".to_owned(), max, acquire_timeout, ..PoolOptions::api() },
    )
}

/// The same, with time enough for a pool whose connections are being replaced.
pub(crate) fn patient_pool(db: &TestDb, max: u32) -> Pool {
    let acquire_timeout = PATIENCE;
    Pool::new(
        &config(db),
        PoolOptions { name: "test".to_owned(), max, acquire_timeout, ..PoolOptions::api() },
    )
}
