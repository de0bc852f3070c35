//! How evenly waiting tasks get connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::load::{Load, Work};
use crate::peers::{Bb8, Deadpool, Ours, PgPool, Select, Test};
use crate::report::Report;
use crate::rounds::{Arm, interleave};
use crate::server::Database;

const CONNECTIONS: u32 = 4;

/// Sixteen for each connection.
const TASKS: u32 = 64;

/// Long enough to average out the luck of single tasks.
const SLICE: Duration = Duration::from_secs(1);

pub(crate) fn measure(runtime: &Runtime, rounds: usize) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let url = database.url();
        let _inside = runtime.enter();
        let arms = [
            arm(runtime, "fairness.ours", Select(Ours::new(&database.config()?, CONNECTIONS))),
            arm(
                runtime,
                "fairness.pgpool",
                Select(runtime.block_on(PgPool::new(url, CONNECTIONS, Test::Default))?),
            ),
            arm(runtime, "fairness.deadpool", Select(Deadpool::new(url, usize::try_from(CONNECTIONS)?)?)),
            arm(runtime, "fairness.bb8", Select(runtime.block_on(Bb8::new(url, CONNECTIONS))?)),
        ];

        let measured = interleave(&arms, rounds)?;
        let rows = vec![
            measured.fairness("fairness.most_over_fewest", "fairness.ours"),
            measured.fairness("fairness.pgpool", "fairness.pgpool"),
            measured.fairness("fairness.deadpool", "fairness.deadpool"),
            measured.fairness("fairness.bb8", "fairness.bb8"),
        ];
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

fn arm<'a>(runtime: &'a Runtime, name: &str, work: impl Work) -> Arm<'a> {
    let work = Arc::new(work);
    Arm::new(name, SLICE, move |slice| Load { tasks: TASKS, slice, timed: true }.run(runtime, &work))
}
