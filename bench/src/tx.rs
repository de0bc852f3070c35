//! A transaction of one update, beside the peers.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use tokio::runtime::Runtime;

use crate::load::{Load, Work};
use crate::peers::{Deadpool, Ours, PgPool, Test, Update};
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;

const CONNECTIONS: u32 = 10;

/// As many tasks as connections, each with a row of its own.
const TASKS: u32 = CONNECTIONS;

/// Long enough: every arm is slower in the first tenths of a second after another arm's turn.
const SLICE: Duration = Duration::from_secs(1);

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

async fn make_rows(database: &Database) -> anyhow::Result<()> {
    let mut conn = sqlx::PgConnection::connect_with(&database.config()?.as_sqlx()).await?;
    // With room in the page for the next version of a row.
    sqlx::query("create table bench_rows (id int8 primary key, n int8 not null) with (fillfactor = 10)")
        .execute(&mut conn)
        .await?;
    sqlx::query("insert into bench_rows select id, 0 from generate_series(0, $1 - 1) id")
        .bind(i64::from(TASKS))
        .execute(&mut conn)
        .await?;
    conn.close().await?;
    Ok(())
}

fn arm<'a>(runtime: &'a Runtime, name: &str, work: impl Work) -> Arm<'a> {
    let work = Arc::new(work);
    Arm::new(name, SLICE, move |slice| Load { tasks: TASKS, slice, timed: true }.run(runtime, &work))
}
