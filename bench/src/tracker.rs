//! The cost of tracking the holders of connections.

use std::time::Instant;

use db_core::{Pool, PoolOptions, Tracking};
use tokio::runtime::Runtime;

use crate::report::{Row, median, sorted};
use crate::server::Database;

/// The batches of a round, each with and without the tracker.
const BATCHES: usize = 51;

/// The acquires of a batch: some 0.5 ms, so that a disturbance rarely affects two batches.
const TAKES: u32 = 1000;

/// Nanoseconds for one acquire and release of an idle connection by one task: with the tracker, without, and the difference.
pub(crate) fn measure(runtime: &Runtime, database: &Database, rounds: usize) -> anyhow::Result<Row> {
    let config = database.config()?;
    let _inside = runtime.enter();
    let on = Pool::new(&config, PoolOptions::api());
    let off = Pool::new(&config, PoolOptions::api().tracker(Tracking::Off));
    // On a worker thread, as the tasks of users are.
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
