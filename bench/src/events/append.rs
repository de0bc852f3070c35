//! Ways for one writer to store events.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::ensure;
use db_layer::{EventLogs, LogId, NewEvent};
use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use crate::load::Work;
use crate::logs::{KIND, batch};

type Session = Arc<Mutex<PgConnection>>;

/// One transaction for each event.
pub(super) struct Rows {
    session: Session,
    log: LogId,
    events: Vec<NewEvent>,
}

impl Rows {
    pub(super) fn new(session: Session, log: LogId) -> Self {
        Self { session, log, events: batch(1, 1000) }
    }
}

impl Work for Rows {
    async fn once(&self, _task: u32, n: i64) -> anyhow::Result<()> {
        let event = &self.events[usize::try_from(n)? % self.events.len()];
        let done = sqlx::query("insert into bench_events (log, id, type, data) values ($1, $2, $3, $4)")
            .bind(self.log.0)
            .bind(n)
            .bind(event.kind())
            .bind(event.data())
            .execute(&mut *self.session.lock().await)
            .await?;
        ensure!(done.rows_affected() == 1, "{} rows were inserted", done.rows_affected());
        Ok(())
    }
}

/// One COPY for each batch.
pub(super) struct Copies {
    session: Session,
    log: LogId,
    events: Vec<NewEvent>,
}

impl Copies {
    pub(super) fn new(session: Session, log: LogId, events: i64) -> Self {
        Self { session, log, events: batch(1, events) }
    }

    /// The batch with number `n`, from 1. The data needs no escaping in COPY.
    fn text(&self, n: i64) -> anyhow::Result<String> {
        let count = i64::try_from(self.events.len())?;
        let mut text = String::with_capacity(self.events.len() * 200);
        for (id, event) in ((n - 1) * count + 1..).zip(&self.events) {
            writeln!(text, "{}\t{id}\t{KIND}\t{}", self.log, event.data())?;
        }
        Ok(text)
    }
}

impl Work for Copies {
    async fn once(&self, _task: u32, n: i64) -> anyhow::Result<()> {
        let text = self.text(n)?;
        let mut session = self.session.lock().await;
        let mut copy = session.copy_in_raw("copy bench_events (log, id, type, data) from stdin").await?;
        copy.send(text.as_bytes()).await?;
        let copied = copy.finish().await?;
        ensure!(copied == u64::try_from(self.events.len())?, "{copied} rows were copied");
        Ok(())
    }
}

/// Appends by `EventLogs`.
pub(super) struct Appends {
    events: EventLogs,
    log: LogId,
    batch: Vec<NewEvent>,
}

impl Appends {
    pub(super) fn new(events: EventLogs, log: LogId, count: i64) -> Self {
        Self { events, log, batch: batch(1, count) }
    }
}

impl Work for Appends {
    async fn once(&self, _task: u32, n: i64) -> anyhow::Result<()> {
        let ids = self.events.append(self.log, &self.batch).await?;
        let last = n * i64::try_from(self.batch.len())?;
        ensure!(*ids.end() == last, "the log ends with {} instead of {last}", ids.end());
        Ok(())
    }
}
