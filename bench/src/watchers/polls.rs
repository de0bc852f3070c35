//! Watchers that each query by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use anyhow::ensure;
use db_core::Config;
use db_layer::{Bus, LogId, NewEvent, Topic};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use super::course::{Log, Watcher};
use crate::logs::page;

const CONNECTIONS: u32 = 10;

#[derive(Clone)]
pub(super) struct Polls {
    shared: Arc<Shared>,
}

struct Shared {
    pool: PgPool,
    writer: Mutex<PgConnection>,
    bus: Bus,
    topic: Topic,
    /// Signals an append. A watcher that was woken and has not queried yet is not woken again.
    woken: watch::Sender<()>,
    /// Forwards the bus's notifications: one subscription for all costs less than one for each.
    _waking: JoinSet<()>,
    /// The id of the next log.
    next: AtomicI64,
    queries: AtomicU64,
}

impl Polls {
    /// `filled` is the last existing log.
    pub(super) async fn open(config: &Config, bus: &Bus, filled: LogId) -> anyhow::Result<Self> {
        let options = config.as_sqlx().disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_with(options.clone()).await?;
        let topic = Topic::new("by/hand")?;
        let (woken, _) = watch::channel(());
        let mut waking = JoinSet::new();
        let (mut subscription, wake) = (bus.subscribe(&topic, 1), woken.clone());
        waking.spawn(async move {
            // A gap is a reason to query as well.
            while subscription.recv().await.is_some() {
                wake.send_replace(());
            }
        });
        let shared = Shared {
            pool,
            writer: Mutex::new(options.connect().await?),
            bus: bus.clone(),
            topic,
            woken,
            _waking: waking,
            next: AtomicI64::new(filled.0 + 1),
            queries: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Log for Polls {
    const NAME: &'static str = "polls";

    async fn create(&self) -> anyhow::Result<LogId> {
        Ok(LogId(self.shared.next.fetch_add(1, Ordering::Relaxed)))
    }

    async fn append(&self, log: LogId, first: i64, events: &[NewEvent]) -> anyhow::Result<()> {
        let Shared { writer, bus, topic, .. } = &*self.shared;
        let ids: Vec<i64> = (first..).take(events.len()).collect();
        let kinds: Vec<&str> = events.iter().map(NewEvent::kind).collect();
        let data: Vec<&str> = events.iter().map(NewEvent::data).collect();
        let done = sqlx::query(
            "insert into bench_events (log, id, type, data)
             select $1, id, type, data from unnest($2::int8[], $3::text[], $4::text[]) as _ (id, type, data)",
        )
        .bind(log.0)
        .bind(ids)
        .bind(kinds)
        .bind(data)
        .execute(&mut *writer.lock().await)
        .await?;
        ensure!(done.rows_affected() == u64::try_from(events.len())?, "{} rows", done.rows_affected());
        bus.notify_soon(topic)?;
        Ok(())
    }

    async fn watch(&self, log: LogId, watcher: &mut Watcher) -> anyhow::Result<()> {
        let Shared { pool, woken, queries, .. } = &*self.shared;
        let mut woken = woken.subscribe();
        loop {
            // Marked as seen before the query, so that a later append leads to another query.
            woken.mark_unchanged();
            loop {
                queries.fetch_add(1, Ordering::Relaxed);
                let (rows, is_full) = page(pool, log, watcher.cursor()).await?;
                if !rows.is_empty()
                    && !watcher.see(rows.iter().map(|(id, _, data, _)| (*id, data.as_str())))?
                {
                    return Ok(());
                }
                if !is_full {
                    break;
                }
            }
            woken.changed().await?;
        }
    }

    fn queries(&self) -> u64 {
        self.shared.queries.load(Ordering::Relaxed)
    }
}
