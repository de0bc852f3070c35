//! `EventLogs`, with the shipped defaults.

use anyhow::{Context, ensure};
use db_core::{Config, Pool, PoolOptions};
use db_layer::{Bus, BusOptions, EventLogs, LogId, NewEvent};

use super::course::{Log, Watcher};

/// As many as the peer's pool has. One of them is the writer's.
const CONNECTIONS: u32 = 10;

#[derive(Clone)]
pub(super) struct Ours {
    events: EventLogs,
    bus: Bus,
}

impl Ours {
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let bus = Bus::open(config, BusOptions::default()).await?;
        let pool = Pool::new(config, PoolOptions::backend().max(CONNECTIONS));
        Ok(Self { events: EventLogs::new(pool, &bus), bus })
    }

    pub(super) fn events(&self) -> &EventLogs {
        &self.events
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }
}

impl Log for Ours {
    const NAME: &'static str = "ours";

    async fn create(&self) -> anyhow::Result<LogId> {
        Ok(self.events.create().await?)
    }

    async fn append(&self, log: LogId, first: i64, events: &[NewEvent]) -> anyhow::Result<()> {
        let ids = self.events.append(log, events).await?;
        ensure!(*ids.start() == first, "event {} was stored instead of event {first}", ids.start());
        Ok(())
    }

    async fn watch(&self, log: LogId, watcher: &mut Watcher) -> anyhow::Result<()> {
        let mut stream = self.events.stream(log, 0);
        loop {
            let batch = stream.next_batch().await?.context("the log has ended")?;
            if !watcher.see(batch.iter().map(|event| (event.id, event.data.as_str())))? {
                return Ok(());
            }
        }
    }

    fn queries(&self) -> u64 {
        let state = self.events.state();
        state.pages + state.head_polls
    }
}
