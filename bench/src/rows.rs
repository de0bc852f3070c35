//! Tasks that each have a connection and a row of their own.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use tokio::runtime::Runtime;

use crate::load::{Load, Work};
use crate::rounds::Arm;
use crate::server::Database;

/// The connections of each pool.
pub(crate) const CONNECTIONS: u32 = 10;

const TASKS: u32 = CONNECTIONS;

/// Long enough: every arm is slower in the first tenths of a second after another arm's turn.
const SLICE: Duration = Duration::from_secs(1);

/// Makes a row for each task.
pub(crate) async fn make_rows(database: &Database) -> anyhow::Result<()> {
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

/// An arm in which each task works on its row.
pub(crate) fn arm<'a>(runtime: &'a Runtime, name: &str, work: impl Work) -> Arm<'a> {
    let work = Arc::new(work);
    Arm::new(name, SLICE, move |slice| Load { tasks: TASKS, slice, timed: true }.run(runtime, &work))
}
