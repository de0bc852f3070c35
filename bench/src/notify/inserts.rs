//! Statements that insert a row and notify.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::ensure;
use db_core::{Config, Pool};
use db_layer::db_notify::{Bus, Topic};
use sqlx::postgres::PgQueryResult;
use sqlx::{ConnectOptions, Connection};

use super::committed::{Committed, now};
use crate::load::Work;

/// How an insert is notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notifies {
    /// Not at all.
    Nothing,
    /// By `pg_notify` in the same statement, before the commit.
    WithinTheTransaction,
    /// By the bus, after the commit.
    AfterTheCommit,
}

impl Notifies {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "plain",
            Self::WithinTheTransaction => "in_tx",
            Self::AfterTheCommit => "ours",
        }
    }
}

/// The channel of a bus with default options. With another channel, the notifications would not be received, which is an error.
const CHANNEL: &str = "db_notify.default";

pub(super) async fn make_table(config: &Config) -> anyhow::Result<()> {
    let mut conn = config.as_sqlx().connect().await?;
    // Without autovacuum, which would take disk time from an arm.
    sqlx::query(
        "create table bench_rows (id int8 generated always as identity primary key, n int8 not null) \
         with (autovacuum_enabled = off)",
    )
    .execute(&mut conn)
    .await?;
    conn.close().await?;
    Ok(())
}

/// The name of a topic.
pub(super) fn topic(number: u32) -> String {
    format!("topic/{number}")
}

/// The work of one slice.
pub(super) struct Inserts {
    pool: Pool,
    bus: Arc<Bus>,
    notifies: Notifies,
    topics: u32,
    next: AtomicU32,
    /// One for each task, so that no task waits for another.
    committed: Vec<Log>,
}

type Log = Arc<Mutex<Vec<Committed>>>;

impl Inserts {
    pub(super) fn new(pool: &Pool, bus: &Arc<Bus>, topics: u32, tasks: u32, notifies: Notifies) -> Self {
        Self {
            pool: pool.clone(),
            bus: Arc::clone(bus),
            notifies,
            topics,
            next: AtomicU32::new(0),
            committed: (0..tasks).map(|_| Log::default()).collect(),
        }
    }

    /// The commits with a notification.
    pub(super) fn committed(&self) -> Vec<Committed> {
        self.committed.iter().flat_map(|log| lock(log).clone()).collect()
    }

    async fn insert(&self, n: i64) -> anyhow::Result<()> {
        let insert = sqlx::query("insert into bench_rows (n) values ($1)").bind(n);
        inserted(&insert.execute(self.pool.handle()).await?)
    }

    async fn insert_and_notify(&self, n: i64, topic: &Topic) -> anyhow::Result<()> {
        let sql = "with inserted as (insert into bench_rows (n) values ($1) returning n) \
                   select pg_notify($2, $3) from inserted";
        // The bus's notification inside a transaction, in its documented form.
        let payload = format!("1{}:0:{topic}", topic.as_str().len());
        let insert = sqlx::query(sql).bind(n).bind(CHANNEL).bind(payload);
        inserted(&insert.execute(self.pool.handle()).await?)
    }
}

impl Work for Inserts {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        if self.notifies == Notifies::Nothing {
            return self.insert(n).await;
        }
        let log = &self.committed[task as usize];
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.topics;
        let topic = Topic::new(topic(number))?;
        if self.notifies == Notifies::AfterTheCommit {
            self.insert(n).await?;
            // Before the bus is notified.
            lock(log).push(Committed { topic: number, at: now() });
            self.bus.notify_soon(&topic)?;
        } else {
            let at = now();
            self.insert_and_notify(n, &topic).await?;
            lock(log).push(Committed { topic: number, at });
        }
        Ok(())
    }
}

fn inserted(result: &PgQueryResult) -> anyhow::Result<()> {
    ensure!(result.rows_affected() == 1, "{} rows were inserted", result.rows_affected());
    Ok(())
}

fn lock(log: &Log) -> MutexGuard<'_, Vec<Committed>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
