//! Appends while another session keeps a snapshot.
//!
//! PostgreSQL does not remove row versions that an open snapshot may see. A writer that updates a row with each append therefore has
//! more and more versions to skip.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use db_core::Config;
use db_layer::{EventLogs, LogId};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::logs;

/// The events in one append: few, as in a stream, since the number of appends matters here.
const BATCH: i64 = 10;

/// How long the rate is measured.
const SAMPLE: Duration = Duration::from_millis(1500);

/// The time before the first sample.
const WARM_UP: Duration = Duration::from_millis(300);

/// Returns the rates of appends at the end of a period with an open snapshot, and before it. The appends never pause.
pub(super) async fn turn(events: EventLogs, config: Config, open: Duration) -> anyhow::Result<(f64, f64)> {
    let log = events.create().await?;
    let appended = Arc::new(AtomicI64::new(0));
    let mut writer = JoinSet::new();
    writer.spawn(append(events, log, Arc::clone(&appended)));

    let looks = async {
        sleep(WARM_UP).await;
        let before = rate(&appended).await;
        let mut conn = config.as_sqlx().connect().await?;
        // The first statement takes the snapshot.
        for statement in ["begin isolation level repeatable read", "select count(*) from event_logs"] {
            conn.execute(sqlx::raw_sql(statement)).await?;
        }
        sleep(open.saturating_sub(SAMPLE)).await;
        let during = rate(&appended).await;
        conn.execute(sqlx::raw_sql("commit")).await?;
        conn.close().await?;
        Ok((during, before))
    };
    tokio::select! {
        rates = looks => rates,
        Some(failed) = writer.join_next() => { failed??; bail!("the writer has ended") }
    }
}

async fn append(events: EventLogs, log: LogId, appended: Arc<AtomicI64>) -> anyhow::Result<()> {
    for first in (1..).step_by(usize::try_from(BATCH)?) {
        events.append(log, &logs::batch(first, BATCH)).await.context("appending beside a snapshot")?;
        appended.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn rate(appended: &AtomicI64) -> f64 {
    let (began, before) = (Instant::now(), appended.load(Ordering::Relaxed));
    sleep(SAMPLE).await;
    #[expect(clippy::cast_precision_loss, reason = "some thousand appends")]
    let appends = (appended.load(Ordering::Relaxed) - before) as f64;
    appends / began.elapsed().as_secs_f64()
}
