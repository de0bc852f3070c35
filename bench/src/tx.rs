//! A transaction of one update, beside the peers.

use tokio::runtime::Runtime;

use crate::peers::{Deadpool, Ours, PgPool, Test, Update};
use crate::report::Report;
use crate::rounds::{interleave, narrow};
use crate::rows::{CONNECTIONS, arm, make_rows};
use crate::server::Database;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let url = database.url();
        runtime.block_on(make_rows(database))?;
        let _inside = runtime.enter();
        let mut arms = vec![
            arm(runtime, "tx.deadpool", Update(Deadpool::new(url, usize::try_from(CONNECTIONS)?)?)),
            arm(runtime, "tx.ours", Update(Ours::new(&database.config()?, CONNECTIONS))),
            arm(
                runtime,
                "tx.pgpool",
                Update(runtime.block_on(PgPool::new(url, CONNECTIONS, Test::Default))?),
            ),
        ];

        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let rows = vec![
            measured.rates("tx.vs_pgpool", "tx.ours", "tx.pgpool"),
            measured.rates("tx.vs_deadpool", "tx.ours", "tx.deadpool"),
        ];
        Ok(measured.report(what, rows))
    })
}
