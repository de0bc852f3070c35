//! Transactions that insert a row each, and what they say of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::ensure;
use db_core::{Config, Pool};
use db_layer::db_notify::{Bus, NotifyAfterCommit, Topic};
use sqlx::{ConnectOptions, Connection};

use super::committed::{Committed, now};
use crate::load::Work;

/// Who is told of an insert, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// Nobody.
    Nothing,
    /// By `pg_notify`, before the commit.
    WithinTheTransaction,
    /// By the bus, as users are told to.
    AfterTheCommit,
}

impl Says {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "plain",
            Self::WithinTheTransaction => "in_tx",
            Self::AfterTheCommit => "ours",
        }
    }
}

pub(super) async fn make_table(config: &Config) -> anyhow::Result<()> {
    let mut conn = config.as_sqlx().connect().await?;
    // Some arm would have the vacuum's share of the disk beside its own.
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
    says: Says,
    topics: u32,
    next: AtomicU32,
    /// Of each task, so that none waits for another one.
    committed: Vec<Log>,
}

type Log = Arc<Mutex<Vec<Committed>>>;

impl Inserts {
    pub(super) fn new(pool: &Pool, bus: &Arc<Bus>, topics: u32, tasks: u32, says: Says) -> Self {
        Self {
            pool: pool.clone(),
            bus: Arc::clone(bus),
            says,
            topics,
            next: AtomicU32::new(0),
            committed: (0..tasks).map(|_| Log::default()).collect(),
        }
    }

    /// What was committed and spoken of.
    pub(super) fn committed(&self) -> Vec<Committed> {
        self.committed.iter().flat_map(|log| lock(log).clone()).collect()
    }
}

impl Work for Inserts {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        let log = &self.committed[task as usize];
        let mut tx = self.pool.handle().begin().await?;
        let done = sqlx::query("insert into bench_rows (n) values ($1)").bind(n).execute(&mut tx).await?;
        ensure!(done.rows_affected() == 1, "{} rows were inserted", done.rows_affected());
        if self.says == Says::Nothing {
            return Ok(tx.commit().await?);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.topics;
        let topic = Topic::new(topic(number))?;
        if self.says == Says::AfterTheCommit {
            let log = Arc::clone(log);
            // Before the bus is told.
            tx.after_commit(move || lock(&log).push(Committed { topic: number, at: now() }));
            tx.notify(&topic)?;
            tx.commit().await?;
        } else {
            self.bus.notify_in(&mut tx, &topic, "").await?;
            let at = now();
            tx.commit().await?;
            lock(log).push(Committed { topic: number, at });
        }
        Ok(())
    }
}

fn lock(log: &Log) -> MutexGuard<'_, Vec<Committed>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
