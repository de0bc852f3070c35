//! `db-core`'s pool.

use db_core::{Config, Pool, PoolOptions};

use super::{FIND, Finds, SELECT, Selects, Takes, UPDATE, Updates};

#[derive(Debug, Clone)]
pub(crate) struct Ours(Pool);

impl Ours {
    /// The shipped defaults, except the size. Must be called inside a runtime.
    pub(crate) fn new(config: &Config, connections: u32) -> Self {
        Self(Pool::new(config, PoolOptions::api().max(connections)))
    }
}

impl Selects for Ours {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(SELECT).bind(n).fetch_one(self.0.handle()).await?)
    }
}

impl Takes for Ours {
    async fn take(&self) -> anyhow::Result<()> {
        drop(self.0.handle().acquire().await?);
        Ok(())
    }
}

impl Updates for Ours {
    async fn update(&self, id: i64) -> anyhow::Result<u64> {
        let mut tx = self.0.handle().begin().await?;
        let done = sqlx::query(UPDATE).bind(id).execute(&mut tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

impl Finds for Ours {
    async fn find(&self, id: i64) -> anyhow::Result<i64> {
        let (_, n): (i64, i64) = sqlx::query_as(FIND).bind(id).bind(1_i64).fetch_one(self.0.handle()).await?;
        Ok(n)
    }
}
