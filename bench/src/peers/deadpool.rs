//! `deadpool-postgres`, which regards a connection as good unless it is closed.

use deadpool_postgres::tokio_postgres::NoTls;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};

use super::{SELECT, Selects, Takes, UPDATE, Updates};

#[derive(Debug, Clone)]
pub(crate) struct Deadpool(Pool);

impl Deadpool {
    pub(crate) fn new(url: &str, connections: usize) -> anyhow::Result<Self> {
        let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(url.parse()?, NoTls, fast);
        Ok(Self(Pool::builder(manager).max_size(connections).build()?))
    }
}

impl Selects for Deadpool {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        let client = self.0.get().await?;
        let statement = client.prepare_cached(SELECT).await?;
        Ok(client.query_one(&statement, &[&n]).await?.try_get(0)?)
    }
}

impl Takes for Deadpool {
    async fn take(&self) -> anyhow::Result<()> {
        drop(self.0.get().await?);
        Ok(())
    }
}

impl Updates for Deadpool {
    async fn update(&self, id: i64) -> anyhow::Result<u64> {
        let mut client = self.0.get().await?;
        let tx = client.transaction().await?;
        let statement = tx.prepare_cached(UPDATE).await?;
        let rows = tx.execute(&statement, &[&id]).await?;
        tx.commit().await?;
        Ok(rows)
    }
}
