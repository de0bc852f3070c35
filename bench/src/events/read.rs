//! A log read from its beginning to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use db_layer::{EventLog, LogId};
use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::EVENTS;
use crate::load::Slice;
use crate::logs::{Next, page};

pub(super) async fn ours(events: EventLog, log: LogId, slice: Duration) -> anyhow::Result<Slice> {
    let mut readings = Readings::new(slice);
    while readings.again() {
        let mut next = Next(1);
        let mut stream = events.stream(log, 0);
        while let Some(batch) = stream.next_batch().await? {
            for event in &*batch {
                next.count(event.id, &event.data)?;
            }
        }
        readings.check(&next)?;
    }
    Ok(readings.over())
}

pub(super) async fn sqlx(
    session: Arc<Mutex<PgConnection>>,
    log: LogId,
    slice: Duration,
) -> anyhow::Result<Slice> {
    let mut session = session.lock().await;
    let mut readings = Readings::new(slice);
    while readings.again() {
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
        readings.check(&next)?;
    }
    Ok(readings.over())
}

/// As many as are begun within a slice.
struct Readings {
    began: Instant,
    slice: Duration,
    begun: u32,
}

impl Readings {
    fn new(slice: Duration) -> Self {
        Self { began: Instant::now(), slice, begun: 0 }
    }

    fn again(&mut self) -> bool {
        let again = self.begun == 0 || self.began.elapsed() < self.slice;
        self.begun += u32::from(again);
        again
    }

    fn check(&self, Next(next): &Next) -> anyhow::Result<()> {
        ensure!(*next == EVENTS + 1, "reading number {} ended before event {next}", self.begun);
        Ok(())
    }

    /// Events a second.
    fn over(self) -> Slice {
        #[expect(clippy::cast_precision_loss, reason = "a hundred thousand")]
        let events = EVENTS as f64 * f64::from(self.begun);
        Slice::of(events / self.began.elapsed().as_secs_f64(), None)
    }
}
