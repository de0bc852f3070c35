//! What it costs to know who holds a connection.

use std::time::Instant;

use db_core::{Pool, PoolOptions, Tracking};
use tokio::runtime::Runtime;

use crate::report::{Row, median, sorted};
use crate::server::Database;

/// How many batches a round has, each with and without the tracker.
const BATCHES: usize = 51;

/// How many times a connection is taken and given back in a batch: some 0.5 ms, so that what disturbs one batch rarely
/// disturbs the next.
const TAKES: u32 = 1000;

/// Nanoseconds of one take and give-back of an idle connection by one task: with the tracker, without, and the difference.
pub(crate) fn measure(runtime: &Runtime, database: &Database, rounds: usize) -> anyhow::Result<Row> {
    let config = database.config()?;
    let _inside = runtime.enter();
    let on = Pool::new(&config, PoolOptions::api());
    let off = Pool::new(&config, PoolOptions::api().tracker(Tracking::Off));
    // On a worker thread, as everybody's tasks are.
    let measured = runtime.spawn(async move {
        let mut measured = Vec::new();
        // The first round opens the connections.
        for _ in 0..=rounds {
            measured.push(round(&on, &off).await?);
        }
        measured.remove(0);
        anyhow::Ok(measured)
    });
    Ok(Row::difference("tracker.ns", "ns", &runtime.block_on(measured)??))
}

async fn round(on: &Pool, off: &Pool) -> anyhow::Result<(f64, f64)> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for batch in 0..BATCHES {
        if batch % 2 == 0 {
            with.push(take(on).await?);
            without.push(take(off).await?);
        } else {
            without.push(take(off).await?);
            with.push(take(on).await?);
        }
    }
    Ok((median(&sorted(with.into_iter())), median(&sorted(without.into_iter()))))
}

async fn take(pool: &Pool) -> anyhow::Result<f64> {
    let began = Instant::now();
    for _ in 0..TAKES {
        drop(pool.handle().acquire().await?);
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / f64::from(TAKES))
}
