//! Runs a test: called by the attribute macro, and by examples.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

use crate::database::DROP_LIMIT;
use crate::db::TestDb;
use crate::error::Error;
use crate::leftovers::{self, Allowed, within};
use crate::server::TestServer;

/// The environment variable with a filter of `tracing-subscriber`, such as `db_core=debug`.
const LOG: &str = "DB_TESTKIT_LOG";

/// Runs an example with an empty database of its own, in a runtime of its own. For code that cannot be an `async fn` with the
/// attribute [`test`](macro@crate::test), such as examples in documentation, which are programs with a `main`. What the example
/// leaves on the server is not looked at.
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
    print_log();
    runtime(Some(2)).block_on(async {
        match TestDb::empty().await {
            Ok(db) => example(db).await,
            Err(error) => panic!("this example has no database: {}", error.with_sources()),
        }
    })
}

/// The arguments of the attribute.
#[derive(Debug)]
pub struct Plan {
    /// A folder.
    pub migrations: Option<&'static str>,
    /// Files, in order.
    pub fixtures: &'static [&'static str],
    /// Whether the test has a server of its own.
    pub throwaway: bool,
    /// Parts of the statements and the application names of sessions that may be left busy.
    pub leaves: &'static [&'static str],
    /// Whether sessions must not stay connected.
    pub strict: bool,
    /// Worker threads; `None` for a runtime in the test's own thread.
    pub workers: Option<usize>,
    /// Pauses the clock of that runtime: the function of tokio, which exists only with a feature of the test's own package.
    pub pause: Option<fn()>,
}

impl Plan {
    /// Without arguments.
    pub const DEFAULT: Plan = Plan {
        migrations: None,
        fixtures: &[],
        throwaway: false,
        leaves: &[],
        strict: false,
        workers: Some(2),
        pause: None,
    };

    async fn databases(&self, count: usize) -> Result<Vec<TestDb>, Error> {
        let server =
            if self.throwaway { TestServer::throwaway().await? } else { TestServer::shared().await? };
        let mut dbs = Vec::with_capacity(count);
        for _ in 0..count {
            let db = match self.migrations {
                Some(folder) => server.create(folder).await?,
                None => server.empty().await?,
            };
            for file in self.fixtures {
                db.load_fixture(file).await?;
            }
            dbs.push(db);
        }
        Ok(dbs)
    }
}

/// What a test returns.
#[diagnostic::on_unimplemented(message = "a test returns `()` or a `Result`, and not `{Self}`")]
pub trait Outcome {
    /// Whether the test has failed without a panic.
    fn is_failure(&self) -> bool;
}

impl Outcome for () {
    fn is_failure(&self) -> bool {
        false
    }
}

impl<T, E> Outcome for Result<T, E> {
    fn is_failure(&self) -> bool {
        self.is_err()
    }
}

/// Runs the test, looks at what it left, and drops its databases.
///
/// # Panics
///
/// If the test panics, if there is no database for it, or if it left something.
#[track_caller]
pub fn run_test<const N: usize, T: Outcome>(plan: &Plan, test: impl AsyncFnOnce([TestDb; N]) -> T) -> T {
    print_log();
    let runtime = runtime(plan.workers);
    let kept = match runtime.block_on(plan.databases(N)) {
        Ok(dbs) => dbs,
        Err(error) => panic!("this test has no database: {}", error.with_sources()),
    };
    let dbs = std::array::from_fn(|at| TestDb::share(&kept[at]));
    // Everything that the test owns is dropped when this returns, while the tasks that it spawned still run.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            if let Some(pause) = plan.pause {
                // Not before: a paused clock would jump over the kit's own deadlines.
                pause();
            }
            test(dbs).await
        })
    }));
    let allowed = Allowed { leaves: plan.leaves, idle: !plan.strict };
    let left = runtime.block_on(async {
        let left = leftovers::look(&kept, &allowed).await;
        for db in kept {
            // In the session that is there already. If that fails, the drop of the value opens another one.
            let _ = within(DROP_LIMIT, db.drop_now()).await;
        }
        left
    });
    let report = format!(
        "the test left something on the server:{left}\n\
         End it before the test ends, or allow it with `leaves = \"…\"`, a part of its statement or of its application name."
    );
    match outcome {
        // The failure of the test itself counts.
        Err(panic) => {
            print(&left, &report);
            resume_unwind(panic)
        }
        Ok(outcome) if outcome.is_failure() => {
            print(&left, &report);
            outcome
        }
        Ok(outcome) => {
            assert!(left.is_empty(), "{report}");
            outcome
        }
    }
}

fn print(left: &str, report: &str) {
    if !left.is_empty() {
        eprintln!("db-testkit: {report}");
    }
}

fn runtime(workers: Option<usize>) -> Runtime {
    let mut builder = match workers {
        Some(_) => Builder::new_multi_thread(),
        None => Builder::new_current_thread(),
    };
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder.enable_all().build().expect("the operating system grants the threads")
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
