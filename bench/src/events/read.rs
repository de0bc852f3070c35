//! Reading a log from its beginning to its end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use db_layer::{EventLogs, LogId};
use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::EVENTS;
use crate::load::Slice;
use crate::logs::{Next, page};
use crate::times::Times;

pub(super) async fn ours(events: EventLogs, log: LogId, slice: Duration) -> anyhow::Result<Slice> {
    let mut times = Times::new(slice);
    while times.again() {
        let mut next = Next(1);
        let mut stream = events.stream(log, 0);
        while let Some(batch) = stream.next_batch().await? {
            for event in &*batch {
                next.count(event.id, &event.data)?;
            }
        }
        check(&times, &next)?;
    }
    Ok(over(times))
}

pub(super) async fn sqlx(
    session: Arc<Mutex<PgConnection>>,
    log: LogId,
    slice: Duration,
) -> anyhow::Result<Slice> {
    let mut session = session.lock().await;
    let mut times = Times::new(slice);
    while times.again() {
        let mut next = Next(1);
        loop {
            let (rows, is_full) = page(&mut *session, log, next.0 - 1).await?;
            for (id, _, data, _) in &rows {
                next.count(*id, data)?;
            }
            if !is_full {
                break;
            }
        }
        check(&times, &next)?;
    }
    Ok(over(times))
}

fn check(times: &Times, Next(next): &Next) -> anyhow::Result<()> {
    ensure!(*next == EVENTS + 1, "reading number {} ended before event {next}", times.begun());
    Ok(())
}

fn over(times: Times) -> Slice {
    #[expect(clippy::cast_precision_loss, reason = "100 000 events")]
    times.over(EVENTS as f64)
}
