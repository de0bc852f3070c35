//! Entities of `SeaORM` on our pool, beside the same on its own connection and statements of sqlx on our pool.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use tokio::runtime::Runtime;

use crate::load::{Load, Work};
use crate::peers::{Find, Ours, OursOrm, SeaOrm, Test, Update};
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;

const CONNECTIONS: u32 = 10;

/// As many tasks as connections, each with a row of its own.
const TASKS: u32 = CONNECTIONS;

/// In the first tenths of a second after others had their turn, everybody is slower.
const SLICE: Duration = Duration::from_secs(1);

/// Of some arms alone, if they are named, there are no rows.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let url = database.url();
        runtime.block_on(make_rows(database))?;
        let _inside = runtime.enter();
        let sqlx = Ours::new(&database.config()?, CONNECTIONS);
        let ours = OursOrm::new(&database.config()?, CONNECTIONS);
        let seaorm = runtime.block_on(SeaOrm::new(url, CONNECTIONS, Test::Default))?;
        let seaorm_no_test = runtime.block_on(SeaOrm::new(url, CONNECTIONS, Test::Off))?;
        let mut arms = vec![
            arm(runtime, "orm.10.sqlx", Find(sqlx)),
            arm(runtime, "orm.10.ours", Find(ours.clone())),
            arm(runtime, "orm.10.seaorm", Find(seaorm.clone())),
            arm(runtime, "orm.10.seaorm_no_test", Find(seaorm_no_test)),
            arm(runtime, "orm.tx.ours", Update(ours)),
            arm(runtime, "orm.tx.seaorm", Update(seaorm)),
        ];

        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let rows = vec![
            measured.rates("orm.10.vs_seaorm", "orm.10.ours", "orm.10.seaorm"),
            measured.rates("orm.10.vs_seaorm_no_test", "orm.10.ours", "orm.10.seaorm_no_test"),
            measured.rates("orm.tx.vs_seaorm", "orm.tx.ours", "orm.tx.seaorm"),
            measured.rates("orm.vs_sqlx", "orm.10.ours", "orm.10.sqlx"),
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
