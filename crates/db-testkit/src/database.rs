//! A database with its session, and its drop.

use std::error::Error as StdError;
use std::fmt;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::sync::Mutex;

use crate::admin::Admin;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::pgbouncer::PgBouncer;
use crate::server::TestServer;

/// Limit for dropping a database. After it, the database is left to a later sweep.
pub(crate) const DROP_LIMIT: Duration = Duration::from_secs(10);

/// Owned by the test, and by what runs the test and looks at the database afterwards. The last owner drops it.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) server: TestServer,
    pub(crate) options: PgConnectOptions,
    pub(crate) pool: OnceLock<PgPool>,
    /// The pooler that the tested code is led through, if the environment asks for one.
    pub(crate) through: OnceLock<PgBouncer>,
    /// Its session holds the lock that protects the database from a sweep. `None` once the database is dropped.
    pub(crate) admin: Mutex<Option<Admin>>,
}

impl Database {
    /// The database `name`, whose lock the session of `admin` holds.
    pub(crate) fn new(name: String, server: TestServer, options: PgConnectOptions, admin: Admin) -> Database {
        let (pool, through) = (OnceLock::new(), OnceLock::new());
        Database { name, server, options, pool, through, admin: Mutex::new(Some(admin)) }
    }

    /// Drops the database in the session that made it. Cancel safe: then the drop of the value does the rest.
    pub(crate) async fn drop_now(&self) -> Result<(), Error> {
        let mut admin = self.admin.lock().await;
        if let Some(admin) = &mut *admin {
            admin.drop_by_force(&self.name).await?;
        }
        if let Some(admin) = admin.take() {
            admin.close().await;
        }
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.through.take());
        // The lock is held until the database is gone. The runtime of its session may have ended, or be blocked by this drop,
        // so another session drops the database.
        let Some(_lock) = self.admin.get_mut() else { return };
        drop_blocking(&self.server, &self.name, async |_| Ok(()));
    }
}

/// The database that a session is making. The server makes the database even if that session's client has gone, so the drop
/// waits until the session has ended, and with it its lock.
pub(crate) struct HalfMade {
    pub(crate) server: TestServer,
    pub(crate) name: Option<String>,
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        let deadline = Deadline::after(DROP_LIMIT);
        drop_blocking(&self.server, name, async |admin| {
            while !admin.try_lock(name).await? {
                deadline.pause("the server to make a database that nobody waits for").await?;
            }
            Ok(())
        });
    }
}

/// Drops a database in a session and a thread of their own, since the caller may be in a runtime that a drop cannot wait in. A
/// failure is only printed, as it is no reason to fail the test.
fn drop_blocking(
    server: &TestServer,
    name: &str,
    wait: impl AsyncFnOnce(&mut Admin) -> Result<(), Error> + Send,
) {
    let dropped = thread::scope(|scope| {
        let thread = thread::Builder::new().name("db-testkit-drop".into());
        match thread.spawn_scoped(scope, || drop_within_limit(server, name, wait)) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err("its thread panicked".into())),
            Err(error) => Err(error.into()),
        }
    });
    if let Err(error) = dropped {
        eprintln!("db-testkit: the database {name} was not dropped: {error}");
    }
}

fn drop_within_limit(
    server: &TestServer,
    name: &str,
    wait: impl AsyncFnOnce(&mut Admin) -> Result<(), Error>,
) -> Result<(), Box<dyn StdError + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dropped = tokio::time::timeout(DROP_LIMIT, async {
            let mut admin = Admin::connect(server, Deadline::begin()).await?;
            wait(&mut admin).await?;
            admin.drop_by_force(name).await?;
            admin.close().await;
            Ok(())
        });
        match dropped.await? {
            // A dead server of ours took its databases along: some tests kill it on purpose.
            Err(Error::Connect { .. }) if server.is_ours() => Ok(()),
            result => Ok(result?),
        }
    })
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the options, which show the password.
        f.debug_struct("TestDb")
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
